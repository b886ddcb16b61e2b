"""What a job survives: the numbers of known machines, and brute force on small ones."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from tests.topology.machines import hgx, nvl72, trees
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import LEVELS, Machine, Node, Scope, Slot
from tlaunch.topology.placement import place
from tlaunch.topology.replacement import replace
from tlaunch.topology.survival import Survival, survives

SCOPES: tuple[Scope, ...] = get_args(Scope)


def of(machine: Machine, mesh: str, spares: int, within: Scope = "rack") -> Survival:
    placement = place(machine, Mesh.parse(mesh), spares)
    return survives(machine, placement.seats, placement.spares, within)


def test_a_rack_with_two_spare_nodes() -> None:
    assert of(nvl72(), "dp=8,tp=8", 8).reasons == ("any 8 GPUs in each rack", "any 2 nodes in each rack")


def test_racks_and_what_their_spares_are_good_for() -> None:
    in_rack = of(nvl72(4), "dp=32,tp=8", 32)
    assert in_rack.any_of == {"GPU": 8, "node": 2, "rack": 0}
    assert in_rack.reasons == ("any 8 GPUs in each rack", "any 2 nodes in each rack", "no whole rack")
    anywhere = of(nvl72(4), "dp=27,tp=8", 72, "any")
    assert anywhere.any_of == {"GPU": 72, "node": 18, "rack": 1}
    assert anywhere.reasons[0] == "any 72 GPUs in all"
    assert (anywhere.tightest, anywhere.spares) == (None, 72)


def test_domains_inside_a_rack() -> None:
    found = of(hgx(8), "dp=7,tp=8", 8, "any")
    assert found.any_of == {"GPU": 8, "node": 1, "rack": 0}, "a domain is a node here"
    assert of(hgx(8), "dp=56", 8).any_of["node"] == 0, "each rack has half a node"


def test_the_rack_with_the_fewest_spares_decides() -> None:
    machine = Machine(tuple(Node(f"n{i}", 4, rack="left" if i < 2 else "right") for i in range(4)))
    seats = dict(enumerate(machine.slots[:10]))
    found = survives(machine, seats, machine.slots[10:], "rack")
    assert (found.tightest, found.spares) == ("left", 0)
    assert found.reasons == ("no GPU of left: it has no spare", "no whole node", "no whole rack")


def still_runs(
    machine: Machine, seats: dict[int, Slot], spares: Iterable[Slot], lost: set[Slot], within: Scope
) -> bool:
    failed = {rank: slot for rank, slot in seats.items() if slot in lost}
    return not replace(machine, failed, [slot for slot in spares if slot not in lost], within).unplaced


@given(trees(max_slots=8), st.sampled_from(SCOPES), st.data())
def test_the_numbers_are_exact(machine: Machine, within: Scope, data: st.DataObject) -> None:
    roles = [data.draw(st.sampled_from(["rank", "spare", "bad"])) for _ in machine.slots]
    seats = dict(enumerate(slot for slot, role in zip(machine.slots, roles, strict=True) if role == "rank"))
    spares = [slot for slot, role in zip(machine.slots, roles, strict=True) if role == "spare"]
    if not seats:
        return
    found = survives(machine, seats, spares, within)
    used = [slot for slot in machine.slots if slot in spares or slot in seats.values()]
    for unit, number in found.any_of.items():
        if unit == "GPU":
            parts = [{slot} for slot in used]
        else:
            assert unit in LEVELS
            regions = machine.regions[unit]
            nodes = {node.name: regions[index] for index, node in enumerate(machine)}
            parts = [{slot for slot in used if nodes[slot.node] == region} for region in sorted(set(regions))]
        survived = 0
        for count in range(1, len(parts) + 1):
            choices = (set().union(*chosen) for chosen in combinations(parts, count))
            if not all(still_runs(machine, seats, spares, lost, within) for lost in choices):
                break
            survived = count
        assert number == survived
