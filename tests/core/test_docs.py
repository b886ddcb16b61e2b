"""The policies in docs/topology.md do what is said there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tlaunch
from tests.core.world import World, racks, recovered
from tlaunch.topology.model import Machine, Node

PAGE = Path(__file__).resolve().parents[2] / "docs" / "topology.md"


@pytest.fixture
def policies() -> dict[str, type[tlaunch.Policy]]:
    found: dict[str, type[tlaunch.Policy]] = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        names: dict[str, object] = {}
        exec(compile(code, str(PAGE), "exec", dont_inherit=True), names)
        found |= {name: cls for name, cls in names.items() if isinstance(cls, type)}
    return found


def test_groups_are_kept_together(policies: dict[str, type[tlaunch.Policy]]) -> None:
    machine = Machine(tuple(Node(f"n{index}", 4, domain=f"n{index}", rack="r") for index in range(3)))
    world = World.started(machine, "dp=2,tp=4", 4, policy=policies["KeepGroupsTogether"]())
    world.fail(world.seats()[1])
    recovered(world)
    assert {world.seats()[rank].node for rank in range(4)} == {"n2"}


def test_a_job_grows_at_once(policies: dict[str, type[tlaunch.Policy]]) -> None:
    world = World.started(racks(1, 3, 2), "dp=3,tp=2", policy=policies["GrowAtOnce"]())
    world.lose("r0-n0")
    assert str(recovered(world).mesh) == "dp=2,tp=2"
    world.join(Node("r0-n0", 2, domain="d0", rack="r0"))
    assert str(recovered(world).mesh) == "dp=3,tp=2"
