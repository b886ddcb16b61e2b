"""The launcher's watch over a job, told by the store and by its agents."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.hosts.agents import Told, start_agents
from tests.observe.jobs import END, KEYS, MACHINE, START, fill
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.core.plan import Result
from tlaunch.launcher.core.stored import stored
from tlaunch.launcher.hosts import watch as watch_module
from tlaunch.launcher.hosts.watch import AgentFailed, Watch
from tlaunch.launcher.observe.events import EventLog
from tlaunch.launcher.observe.follow import Follower
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import Changes, StoreRefused


class Behind(MemoryStore):
    """A store whose watches bring nothing, as long as a test takes: what they would bring is still under way."""

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes, None]:
        yield Changes((), revision, time.monotonic())
        await asyncio.Event().wait()


async def watched(
    store: MemoryStore, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> tuple[Watch, asyncio.Task[Result]]:
    """Start a watch over agents that run ``script`` once it has looked, and wait until all of them have ended."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    held = os.open(gate, os.O_RDWR)
    ended = asyncio.Semaphore(0)
    agents = await start_agents(
        f"read _ < {gate}; {script}", MACHINE, tmp_path, monkeypatch, view=told, ended=ended.release
    )
    watch = Watch(KEYS, MACHINE, agents, patience=1, request=1)

    async def run() -> Result:
        with EventLog(tmp_path, told.notice) as log:
            return await watch.run(store, Follower(told, log))

    running = asyncio.create_task(run())
    await told.looked.wait()
    os.write(held, b"\n" * len(agents))  # a line each
    for _ in agents:
        await ended.acquire()
    os.close(held)
    for agent in agents:
        await agent.finish(10, 10)
    return watch, running


async def test_agents_that_ended_for_a_result_are_not_taken_for_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Behind()
    await fill(store, START)
    told = Told()
    watch, running = await watched(store, "exit 0", tmp_path, monkeypatch, told)
    await store.put(KEYS.plan(END.generation), encode(stored(END, None)))
    watch.wake.set()
    assert await running == END.result
    assert watch.agents_know
    assert told.generations == [START.generation, END.generation]
    assert told.notices == []


async def test_a_plan_that_is_under_way_makes_an_ended_agent_a_lost_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Behind()
    await fill(store)
    watch, running = await watched(store, "exit 3", tmp_path, monkeypatch, Told())
    await store.put(KEYS.plan(START.generation), encode(stored(START, None)))
    watch.wake.set()
    assert "every agent has ended before the job had a result" in (await running).reason


@pytest.mark.parametrize("reachable", [True, False])
async def test_agents_that_end_before_there_is_a_plan_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    store = Behind()
    await fill(store)
    watch, running = await watched(store, "echo no torch here >&2; exit 3", tmp_path, monkeypatch, Told())
    if not reachable:
        store.outage()
    watch.wake.set()
    with pytest.raises(AgentFailed, match=r"^node-0: no torch here$") as failure:
        await running
    assert failure.value.exit_code == 3


async def test_a_job_that_has_lost_its_store_for_good_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = MemoryStore(), Told()
    await fill(store, START)
    agents = await start_agents("exec sleep 600", MACHINE, tmp_path, monkeypatch, view=told, ended=lambda: None)
    watch = Watch(KEYS, MACHINE, agents, patience=1, request=1)
    with EventLog(tmp_path, told.notice) as log:
        running = asyncio.create_task(watch.run(store, Follower(told, log)))
        await told.looked.wait()
        watch.fail("etcd is dead")
        watch.fail("and buried")
        assert await running == Result(1, "etcd is dead")
    assert not watch.agents_know, "so they have to be told by signal"
    for agent in agents:
        agent.kill()
        await agent.finish(10, 10)


async def test_a_store_out_of_reach_is_told_of_and_so_is_its_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "Mirror", functools.partial(Mirror, gap=0.3))
    store, told = MemoryStore(probe=0.05), Told()
    await fill(store, START)
    agents = await start_agents("exec sleep 600", MACHINE, tmp_path, monkeypatch, view=told, ended=lambda: None)
    watch = Watch(KEYS, MACHINE, agents, patience=1, request=1)
    with EventLog(tmp_path, told.notice) as log:
        running = asyncio.create_task(watch.run(store, Follower(told, log)))
        await told.looked.wait()
        store.outage()
        await told.until("etcd is out of reach")
        store.heal()
        await told.until("etcd is in reach again")
        await store.put(KEYS.plan(END.generation), encode(stored(END, None)))
        assert await running == END.result
    for agent in agents:
        agent.kill()
        await agent.finish(10, 10)


@pytest.mark.parametrize("what", ["refused", "gone"])
async def test_a_job_that_the_store_gives_no_access_to_any_more_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    class Refusing(MemoryStore):
        async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes, None]:
            yield Changes((), revision, time.monotonic())
            await gate.wait()
            raise StoreRefused("the password has been changed")

    gate = asyncio.Event()
    store, told = Refusing() if what == "refused" else MemoryStore(), Told()
    await fill(store, START)
    agents = await start_agents("exec sleep 600", MACHINE, tmp_path, monkeypatch, view=told, ended=lambda: None)
    watch = Watch(KEYS, MACHINE, agents, patience=1, request=1)
    with EventLog(tmp_path, told.notice) as log:
        running = asyncio.create_task(watch.run(store, Follower(told, log)))
        await told.looked.wait()
        gate.set()
        if what == "gone":
            await store.delete(KEYS.root, prefix=True)
        reason = (await running).reason
    assert reason.startswith("the password has been changed" if what == "refused" else f"job {KEYS.job} is gone")
    for agent in agents:
        agent.kill()
        await agent.finish(10, 10)
