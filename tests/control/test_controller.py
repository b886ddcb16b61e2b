"""The controller's loop on the in-memory store: what it commits, and when it stops."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NoReturn

import pytest

from tlaunch.launcher.control.commit import Committed, Ledger
from tlaunch.launcher.control.controller import Controller
from tlaunch.launcher.control.election import Fence
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.probe import Listener
from tlaunch.launcher.control.records import Ack, Registration, Report, Stop
from tlaunch.launcher.control.snapshot import View
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core import decisions
from tlaunch.launcher.core.assign import Assignment, Generation
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.events import AllFinished, Exit, NodeLost, RankFailed, SlotFailed
from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.core.policy import Failure, Policy
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.core.stored import StoredPlan
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import BadRequest, StoreFull
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Node, Slot

KEYS = Keys("job")
NODES = ("node-0", "node-1", "node-2")
SPEC = JobSpec("job", nodes=3, spares=2, mesh=Mesh.flat(4))
TIMING = Timing(retry=0.01, probe=0.05, request=0.1, policy=0.05)


class Stage:
    """A store with three nodes, and a controller that leads them."""

    def __init__(self, mirror: Mirror, store: MemoryStore, fence: Fence, policy: Policy, spec: JobSpec) -> None:
        self.store = store
        self.settled_since: float | None = 0.0
        self._mirror = mirror
        self.controller = Controller(
            ledger=Ledger(store, KEYS, fence),
            spec=spec,
            policy=policy,
            timing=TIMING,
            contact_since=lambda: self.settled_since,
        )
        self.running = asyncio.create_task(self.controller.run())

    async def plan(self, generation: int) -> Plan:
        """Wait for a plan."""
        key = KEYS.plan(generation)
        while key not in self._mirror.items:
            done, _ = await asyncio.wait(
                [self.running, changed := asyncio.create_task(self._mirror.changed(None))],
                return_when="FIRST_COMPLETED",
            )
            if self.running in done and key not in self._mirror.items and not changed.done():
                changed.cancel()
                self.running.result()
                raise AssertionError("the controller has stopped")
        found = [plan for plan in View(KEYS, self._mirror.items).plans() if plan.generation == generation]
        return found[0]

    async def generations(self) -> int:
        return len((await self.store.list(KEYS.plans)).items)

    async def ack(self, generation: int) -> None:
        for name in NODES:
            await self.store.put(KEYS.ack(name), encode(Ack(generation)))


@asynccontextmanager
async def stage(policy: Policy | None = None, spec: JobSpec = SPEC) -> AsyncIterator[tuple[Stage, dict[str, Listener]]]:
    store = MemoryStore()
    listeners = {}
    revision = await store.put(KEYS.leader, b"us")
    for name in NODES:
        listener = listeners[name] = Listener(name)
        node = Node(name, 2, name, "rack")
        record = Registration(node, "host", 1, name, await listener.open("127.0.0.1"))
        await store.put(KEYS.agent(name), encode(record))
        await store.put(KEYS.node(name), encode(node))
    async with Mirror(store.client(), KEYS.root) as mirror, asyncio.timeout(20):
        staged = Stage(mirror, store, Fence(KEYS.leader, revision), policy or Policy(), spec)
        try:
            yield staged, listeners
        finally:
            staged.running.cancel()
            await asyncio.wait([staged.running])
            for listener in listeners.values():
                await listener.close()


async def test_the_first_plan_and_every_nodes_share_of_it() -> None:
    async with stage() as (on, _):
        plan = await on.plan(1)
        assert plan.world_size == 4
        assigned = {
            kv.key.removeprefix(KEYS.assigns): decode(Assignment, kv.value, kv.key)
            for kv in (await on.store.list(KEYS.assigns)).items
        }
        assert {name: [seat.rank for seat in given.seats] for name, given in assigned.items()} == {
            "node-0": [0, 1],
            "node-1": [2, 3],
            "node-2": [],
        }
        head = await on.store.get(KEYS.generation)
        assert head is not None
        assert decode(Generation, head.value, "").world_size == 4


async def test_a_failed_rank_leads_to_the_next_generation() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        await on.ack(1)
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {1: Exit(signal=9, time=1.0)})))
        plan = await on.plan(2)
        assert [type(event) for event in plan.events] == [RankFailed]
        assert plan.seats[1].slot == Slot("node-0", 1)


async def test_a_plan_waits_until_the_store_has_room_again_and_that_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage() as (on, _):
        await on.plan(1)
        await on.ack(1)
        refused = asyncio.Semaphore(0)

        async def full(*_: object) -> NoReturn:
            refused.release()
            raise StoreFull("no room")

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "commit", full)
            await on.store.put(KEYS.report("node-0"), encode(Report(1, {1: Exit(signal=9, time=1.0)})))
            for _ in range(3):
                await refused.acquire()
        assert [type(event) for event in (await on.plan(2)).events] == [RankFailed]
    told = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert told == ["generation 2 waits until it can be written: no room"]


async def test_a_plan_that_the_store_will_never_take_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Ledger.commit

    async def commit(ledger: Ledger, revision: int, plan: StoredPlan, head: Generation, *rest: object) -> Committed:
        if head.result is None:
            raise BadRequest("request is too large")
        return await write(ledger, revision, plan, head, *rest)  # type: ignore[arg-type]  # whatever they are

    async with stage() as (on, _):
        await on.plan(1)
        await on.ack(1)
        monkeypatch.setattr(Ledger, "commit", commit)
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {1: Exit(signal=9, time=1.0)})))
        assert (await on.plan(2)).result == Result(1, "generation 2 cannot be written: request is too large")


async def test_before_a_crash_ends_the_job_the_one_that_came_first_has_time_to_be_heard_of() -> None:
    async with stage(spec=replace(SPEC, max_restarts=0)) as (on, _):
        await on.plan(1)
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {0: Exit(code=1, message="lost a peer", time=2.0)})))
        await asyncio.sleep(TIMING.verdict / 2)
        await on.store.put(KEYS.report("node-1"), encode(Report(1, {3: Exit(code=7, message="a bug", time=1.0)})))
        plan = await on.plan(2)
        assert plan.result is not None
        assert plan.result.code == 7
        assert "rank 3" in plan.result.reason


async def test_a_bad_slot_is_swapped_out() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {}, {1: "XID 79"})))
        plan = await on.plan(2)
        assert [type(event) for event in plan.events] == [SlotFailed]
        assert plan.seats[1].slot.node == "node-2"


async def test_a_rank_fails_because_a_node_is_gone_and_the_node_is_the_cause() -> None:
    async with stage() as (on, listeners):
        await on.plan(1)
        await listeners["node-1"].close()
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {0: Exit(code=1, time=1.0)})))
        plan = await on.plan(2)
        assert isinstance(plan.events[0], NodeLost)
        assert {seat.rank: seat.slot.node for seat in plan.seats} == {
            0: "node-0",
            1: "node-0",
            2: "node-2",
            3: "node-2",
        }
        assert plan.restarts == 0
        assert await on.store.get(KEYS.agent("node-1")) is None, "every later controller must know it too"


async def test_no_rank_moves_to_a_spare_whose_node_is_gone_unnoticed() -> None:
    async with stage(spec=replace(SPEC, mesh=Mesh.flat(2), spares=4)) as (on, listeners):
        first = await on.plan(1)
        assert [seat.slot.node for seat in first.seats] == ["node-0", "node-0"]
        await listeners["node-1"].close()
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {}, {0: "XID 79", 1: "XID 79"})))
        plan = await on.plan(2)
        assert [seat.slot.node for seat in plan.seats] == ["node-2", "node-2"]
        assert await on.store.get(KEYS.agent("node-1")) is None


async def test_while_an_agent_is_silent_nothing_is_decided_until_its_lease_must_have_run_out() -> None:
    async with stage() as (on, listeners):
        await on.plan(1)
        await listeners["node-1"].close()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            record = Registration(
                Node("node-1", 2, "node-1", "rack"), "host", 1, "node-1", f"127.0.0.1:{silent.getsockname()[1]}"
            )
            await on.store.put(KEYS.agent("node-1"), encode(record))
            await on.store.put(KEYS.report("node-0"), encode(Report(1, {0: Exit(code=1, time=1.0)})))
            await asyncio.sleep(4 * TIMING.probe)
            assert await on.generations() == 1
            await on.store.delete(KEYS.agent("node-1"))
            assert isinstance((await on.plan(2)).events[0], NodeLost)


async def test_a_crash_is_blamed_on_nobody_while_a_missing_node_may_be_the_cause() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        on.settled_since = None  # as with an agent that has only just joined
        await on.store.delete(KEYS.agent("node-1"))
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {0: Exit(code=1, time=1.0)})))
        await asyncio.sleep(4 * TIMING.probe)
        assert await on.generations() == 1
        on.settled_since = time.monotonic() - TIMING.lease
        plan = await on.plan(2)
        assert isinstance(plan.events[0], NodeLost)
        assert plan.restarts == 0


async def test_an_unregistered_node_is_not_lost_before_contact_has_been_unbroken_for_a_lease() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        on.settled_since = None
        await on.store.delete(KEYS.agent("node-1"))
        await asyncio.sleep(0.1)
        assert await on.generations() == 1
        on.settled_since = time.monotonic() - TIMING.lease
        await on.store.put(KEYS.ack("node-0"), encode(Ack(1)))
        assert isinstance((await on.plan(2)).events[0], NodeLost)


async def test_broken_hardware_waits_until_spares_have_had_time_to_register_again() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        spare = await on.store.get(KEYS.agent("node-2"))
        assert spare is not None
        on.settled_since = time.monotonic()
        await on.store.delete(KEYS.agent("node-2"))
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {}, {1: "XID 79"})))
        await asyncio.sleep(0.1)
        assert await on.generations() == 1
        on.settled_since = time.monotonic() - TIMING.lease
        await on.store.put(KEYS.agent("node-2"), spare.value)
        assert (await on.plan(2)).seats[1].slot.node == "node-2"


async def test_it_looks_again_as_soon_as_contact_has_been_unbroken_for_a_lease() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        on.settled_since = time.monotonic() - TIMING.lease + 0.3
        settled_at = on.settled_since + TIMING.lease
        await on.store.delete(KEYS.agent("node-2"))
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {}, {1: "XID 79"})))
        assert (await on.plan(2)).world_size == 3, "the spares' node has not come back"
        assert settled_at <= time.monotonic() < settled_at + TIMING.lease / 2


async def test_broken_hardware_does_not_wait_when_every_node_is_there() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        on.settled_since = None
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {}, {1: "XID 79"})))
        start = time.monotonic()
        assert (await on.plan(2)).seats[1].slot.node == "node-2"
        assert time.monotonic() - start < TIMING.lease / 2


async def test_a_stop_does_not_wait_for_contact_to_settle() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        on.settled_since = None
        await on.store.delete(KEYS.agent("node-2"))
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {}, {1: "XID 79"})))
        start = time.monotonic()
        await on.store.put(KEYS.stop, encode(Stop("stopped by SIGINT", 130)))
        assert (await on.plan(2)).result is not None
        assert time.monotonic() - start < TIMING.lease / 2


async def test_a_policy_that_blocks_does_not_block_the_agent() -> None:
    let = threading.Event()

    class Blocks(Policy):
        def on_failure(self, failure: Failure, cluster: Cluster) -> decisions.Decision:
            let.wait(10)
            return decisions.Stop("never said")

    try:
        async with stage(Blocks()) as (on, _):
            await on.plan(1)
            await on.store.put(KEYS.report("node-0"), encode(Report(1, {}, {1: "XID 79"})))
            plan = await on.plan(2)
            assert plan.seats[1].slot.node == "node-2"
            assert plan.reasons[0] == "policy Blocks took longer than 0.05 s; the ladder decides"
    finally:
        let.set()


async def test_all_finished_ends_the_job_and_the_term() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        done = Exit(code=0, time=1.0)
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {0: done, 1: done})))
        await on.store.put(KEYS.report("node-1"), encode(Report(1, {2: done, 3: done})))
        plan = await on.plan(2)
        assert [type(event) for event in plan.events] == [AllFinished]
        assert plan.result is not None
        assert plan.result.code == 0
        await on.running


async def test_an_operators_stop_ends_the_job_with_its_code() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        await on.store.put(KEYS.stop, encode(Stop("stopped by SIGINT", 130)))
        plan = await on.plan(2)
        assert plan.result is not None
        assert plan.result.code == 130


async def test_a_deposed_controller_stops_and_commits_nothing() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        await on.store.delete(KEYS.leader)
        await on.store.put(KEYS.leader, b"another")
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {}, {1: "XID 79"})))
        await on.running
        assert await on.generations() == 1


@pytest.mark.parametrize("applied", [True, False])
async def test_after_a_commit_of_unknown_outcome_it_reads_and_goes_on(*, applied: bool) -> None:
    async with stage() as (on, _):
        await on.plan(1)
        on.store.fail_next_write(applied=applied)
        await on.store.client().put(KEYS.report("node-0"), encode(Report(1, {}, {1: "XID 79"})))
        await on.plan(2)
        await on.ack(2)
        assert await on.generations() == 2


async def test_a_plan_that_cannot_be_written_ends_the_job_and_says_so() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        node = Node("node-9", 200, "node-9", "rack")
        await on.store.put(KEYS.agent("node-9"), encode(Registration(node, "host", 1, "node-9", "127.0.0.1:1")))
        broken = dict.fromkeys(range(200), "\N{SKULL}" * 300)  # 3.6 kB each as JSON, in the plan twice
        await on.store.put(KEYS.report("node-9"), encode(Report(1, {}, broken)))
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {}, {1: "XID 79"})))
        plan = await on.plan(2)
        assert plan.result is not None
        assert plan.result.code == 1
        assert plan.result.reason.startswith("generation 2 cannot be written: ")
        await on.running


async def test_an_outage_of_the_store_decides_nothing() -> None:
    async with stage() as (on, _):
        await on.plan(1)
        await on.store.put(KEYS.report("node-0"), encode(Report(1, {0: Exit(code=0, time=1.0)})))
        on.store.outage()
        on.settled_since = None
        await asyncio.sleep(0.2)
        assert not on.running.done()
        on.store.heal()
        assert await on.generations() == 1
