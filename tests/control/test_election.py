"""One controller at a time; the next takes over when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tlaunch.launcher.control.commit import Committed, Ledger
from tlaunch.launcher.control.election import Fence, campaign
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.membership import JobGone, Membership
from tlaunch.launcher.control.records import Registration
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.assign import Assignment, Generation
from tlaunch.launcher.core.codec import MAX_BYTES, CodecError
from tlaunch.launcher.core.plan import Plan
from tlaunch.launcher.core.stored import KEPT_PLANS, outdated, stored
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import BadRequest, StoreFull, StoreUnavailable
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Node

KEYS = Keys("job")
TIMING = Timing(retry=0.001)
PLAN = Plan(1, Mesh.flat(1), ())
HEAD = Generation(1, 1, 1, 0, 3)


class Candidate:
    """Campaigns, and says when it leads."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        self.store = store
        registration = Registration(Node(name, 1), "host", 1, name, "127.0.0.1:1")
        self.member = Membership(store, KEYS, registration, TIMING)
        self.terms: asyncio.Queue[Fence] = asyncio.Queue()
        self.resigned = asyncio.Event()

    async def run(self) -> None:
        await self.member.join()
        async with Mirror(self.store, KEYS.head) as head:
            await campaign(self.store, KEYS, self.member, TIMING, self.lead, head=head, nodes=0)

    async def lead(self, fence: Fence) -> None:
        try:
            await self.terms.put(fence)
            await asyncio.Event().wait()
        finally:
            self.resigned.set()


@contextlib.asynccontextmanager
async def campaigning(*candidates: Candidate) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(candidate.run()) for candidate in candidates]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_another_takes_over_when_the_lease_of_the_first_is_lost() -> None:
    store = MemoryStore()
    one, two = Candidate(store, "one"), Candidate(store.client(), "two")
    async with asyncio.timeout(5), campaigning(one, two):
        first = await one.terms.get()
        assert two.terms.empty()
        store.expire((await one.member.lease()).id)
        second = await two.terms.get()
        assert second.create_revision > first.create_revision
        await one.resigned.wait()


async def test_a_deposed_controller_cannot_commit() -> None:
    store = MemoryStore()
    one, two = Candidate(store, "one"), Candidate(store.client(), "two")
    async with asyncio.timeout(5), campaigning(one, two):
        old = await one.terms.get()
        store.expire((await one.member.lease()).id)
        new = await two.terms.get()
        assert await Ledger(store, KEYS, old).commit(0, stored(PLAN, None), HEAD, {}) is Committed.LOST
        assert await store.get(KEYS.generation) is None
        assert await Ledger(store, KEYS, new).commit(0, stored(PLAN, None), HEAD, {}) is Committed.DONE


async def test_a_plan_made_on_an_old_generation_is_not_committed() -> None:
    store = MemoryStore()
    one = Candidate(store, "one")
    async with asyncio.timeout(5), campaigning(one):
        fence = await one.terms.get()
        assert await Ledger(store, KEYS, fence).commit(0, stored(PLAN, None), HEAD, {}) is Committed.DONE
        assert await Ledger(store, KEYS, fence).commit(0, stored(PLAN, None), HEAD, {}) is Committed.LOST


@pytest.mark.parametrize("nodes", [1, 98, 99, 100, 101, 250])
async def test_assignments_of_any_number_of_nodes_are_written_with_the_plan(nodes: int) -> None:
    store = MemoryStore()
    one = Candidate(store, "one")
    changed = {f"node-{index}": Assignment(1, None, ()) for index in range(nodes)}
    async with asyncio.timeout(5), campaigning(one):
        fence = await one.terms.get()
        assert await Ledger(store, KEYS, fence).commit(0, stored(PLAN, None), HEAD, changed) is Committed.DONE
        listing = await store.list(KEYS.assigns)
        assert {kv.key.removeprefix(KEYS.assigns) for kv in listing.items} == set(changed)
        head = await store.get(KEYS.generation)
        assert head is not None
        assert head.mod_revision >= max(kv.mod_revision for kv in listing.items), "the head comes last"


async def test_the_store_holds_the_latest_plans_only() -> None:
    store = MemoryStore()
    one = Candidate(store, "one")
    async with asyncio.timeout(5), campaigning(one):
        ledger = Ledger(store, KEYS, await one.terms.get())
        last = KEPT_PLANS + 3
        for generation in range(1, last + 1):
            await store.put(KEYS.rendezvous(generation), b"")
            before = await store.get(KEYS.generation)
            revision = 0 if before is None else before.mod_revision
            plan = replace(PLAN, generation=generation)
            numbers = [int(kv.key.removeprefix(KEYS.plans)) for kv in (await store.list(KEYS.plans)).items]
            old = outdated({number: number for number in numbers}, generation)
            head = replace(HEAD, number=generation)
            assert await ledger.commit(revision, stored(plan, None), head, {}, old) is Committed.DONE
        kept = range(last - KEPT_PLANS + 1, last + 1)
        assert [kv.key for kv in (await store.list(KEYS.plans)).items] == [KEYS.plan(number) for number in kept]
        meetings = await store.list(KEYS.rendezvous(0).removesuffix("00000000"))
        assert [kv.key for kv in meetings.items] == [KEYS.rendezvous(number) for number in kept]


async def test_a_plan_that_is_too_large_is_refused_before_anything_is_written() -> None:
    store = MemoryStore()
    one = Candidate(store, "one")
    changed = {f"node-{index}": Assignment(1, None, ()) for index in range(250)}
    async with asyncio.timeout(5), campaigning(one):
        ledger = Ledger(store, KEYS, await one.terms.get())
        with pytest.raises(CodecError):
            await ledger.commit(0, stored(replace(PLAN, reasons=("x" * MAX_BYTES,)), None), HEAD, changed)
        assert not (await store.list(KEYS.assigns)).items


async def test_what_ends_a_term_is_told_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    errors = [StoreUnavailable("nobody answers")] * 3 + [StoreFull("no space left")]
    ended = asyncio.Event()

    class Failing(Candidate):
        async def lead(self, fence: Fence) -> None:
            if errors:
                raise errors.pop(0)
            ended.set()
            await asyncio.Event().wait()

    one = Failing(store, "one")
    async with asyncio.timeout(5), campaigning(one):
        await ended.wait()
    assert [record.message for record in caplog.records] == ["nobody answers", "no space left"]


async def test_what_can_never_work_ends_the_campaign() -> None:
    class Failing(Candidate):
        async def lead(self, fence: Fence) -> None:
            raise BadRequest("the value is too large")

    async with asyncio.timeout(5):
        with pytest.raises(BadRequest):
            await Failing(MemoryStore(), "one").run()


async def test_nobody_leads_a_job_that_is_gone() -> None:
    store = MemoryStore()
    await store.put(KEYS.spec, b"a job")
    one = Candidate(store, "one")
    await one.member.join()
    await store.delete(KEYS.spec)
    async with asyncio.timeout(5):
        with pytest.raises(JobGone):
            async with Mirror(store, KEYS.head) as head:
                await campaign(store, KEYS, one.member, TIMING, one.lead, head=head, nodes=0)
    assert one.terms.empty()
