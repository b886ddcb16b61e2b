"""An agent's standard output on its way to the view."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.hosts.agents import Told, start_agents
from tlaunch.launcher.hosts.agents import LINE_LIMIT
from tlaunch.topology.model import Node

OURS = """echo '{"rank": 3, "stream": "out", "text": "step 1"}'"""


async def relayed(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    told, ended = Told(), asyncio.Event()
    (agent,) = await start_agents(script, [Node("node-0", 1)], tmp_path, monkeypatch, view=told, ended=ended.set)
    async with asyncio.timeout(10):
        await ended.wait()
    await agent.finish(10, 10)
    assert agent.code == 5
    return told


async def test_what_an_agent_has_to_say_itself_is_shown_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await relayed("""echo '{"notice": "etcd is full"}'; exit 5""", tmp_path, monkeypatch)
    assert told.notices == ["node-0: etcd is full"]


@pytest.mark.parametrize("noise", ["loaded my policy", "3", "[]", '{"rank": 1}', "[" * 100_000])
async def test_what_a_policy_prints_does_not_cut_the_ranks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    (tmp_path / "noise").write_text(f"{noise}\n")
    told = await relayed(f"{OURS}; cat {tmp_path}/noise; {OURS}; exit 5", tmp_path, monkeypatch)
    assert told.lines == [(3, "out", "step 1")] * 2
    assert told.notices == [f"the agent of node-0 said: {noise}"]


async def test_a_line_that_is_too_long_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noise").write_text("x" * (5 * LINE_LIMIT) + "\n")
    told = await relayed(f"cat {tmp_path}/noise; {OURS}; exit 5", tmp_path, monkeypatch)
    assert told.lines == [(3, "out", "step 1")]
