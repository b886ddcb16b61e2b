"""A node's registration: once, and again when the lease is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.membership import JobGone, Membership, NodeTaken
from tlaunch.launcher.control.probe import Listener
from tlaunch.launcher.control.records import Registration
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import decode
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.topology.model import Node

KEYS = Keys("job")
TIMING = Timing(retry=0.001)


def registration(incarnation: str, address: str = "127.0.0.1:1") -> Registration:
    return Registration(Node("node-00", 4), "host", 17, incarnation, address)


async def nothing() -> None:
    pass


@pytest_asyncio.fixture
async def alive() -> AsyncIterator[Registration]:
    """The registration of an agent that answers."""
    listener = Listener("a")
    yield registration("a", await listener.open("127.0.0.1"))
    await listener.close()


async def test_a_name_belongs_to_the_first_who_takes_it(alive: Registration) -> None:
    store = MemoryStore()
    first = Membership(store, KEYS, alive, TIMING)
    await first.join()
    second = Membership(store.client(), KEYS, registration("b"), TIMING)
    with pytest.raises(
        NodeTaken, match=r"node node-00 of job job is already registered by pid 17 on host: expected each"
    ):
        await second.join()
    await first.leave()
    await second.join()


async def test_the_name_of_an_agent_that_is_gone_can_be_taken_at_once() -> None:
    store = MemoryStore()
    await Membership(store, KEYS, registration("a"), TIMING).join()
    await Membership(store.client(), KEYS, registration("b"), TIMING).join()
    kv = await store.get(KEYS.agent("node-00"))
    assert kv is not None
    assert decode(Registration, kv.value, kv.key).incarnation == "b"


async def test_a_second_agent_leaves_no_lease_behind(alive: Registration) -> None:
    store = MemoryStore()
    await Membership(store, KEYS, alive, TIMING).join()
    before = store.revision
    with pytest.raises(NodeTaken):
        await Membership(store.client(), KEYS, registration("b"), TIMING).join()
    assert store.revision == before
    kv = await store.get(KEYS.agent("node-00"))
    assert kv is not None
    assert kv.lease


async def test_a_lost_lease_leads_to_a_new_registration() -> None:
    store = MemoryStore()
    member = Membership(store, KEYS, registration("a"), TIMING)
    await member.join()
    old = await member.lease()
    done_before: list[bool] = []

    async def before() -> None:
        done_before.append(await store.get(KEYS.agent("node-00")) is None)

    keeping = asyncio.create_task(member.keep(before))
    store.expire(old.id)
    async with asyncio.timeout(5), Mirror(store, KEYS.agents) as mirror:
        while KEYS.agent("node-00") not in mirror.items:
            await mirror.changed(None)
    assert (await member.lease()).id != old.id
    assert done_before == [True]
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping


async def test_an_outage_ends_nothing_and_the_node_joins_again() -> None:
    store = MemoryStore()
    member = Membership(store, KEYS, registration("a"), TIMING)
    await member.join()
    keeping = asyncio.create_task(member.keep(nothing))
    store.outage()
    store.advance(60)
    await asyncio.sleep(0.01)
    assert not keeping.done()
    store.heal()
    async with asyncio.timeout(5):
        assert (await member.lease()).valid
    kv = await store.get(KEYS.agent("node-00"))
    assert kv is not None
    assert kv.lease == (await member.lease()).id
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping


async def test_an_answer_that_went_astray_is_recognised_as_our_own_registration() -> None:
    store = MemoryStore()
    member = Membership(store, KEYS, registration("a"), TIMING)
    await member.join()
    again = Membership(store, KEYS, registration("a"), TIMING)
    await again.join()
    kv = await store.get(KEYS.agent("node-00"))
    assert kv is not None
    assert kv.lease == (await again.lease()).id


async def test_a_registration_that_was_struck_off_is_written_again() -> None:
    store = MemoryStore()
    member = Membership(store, KEYS, registration("a"), TIMING)
    await member.join()
    await store.delete(KEYS.agent("node-00"))
    await member.renew()
    assert await store.get(KEYS.agent("node-00")) is not None


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_job_that_is_gone_is_not_joined_again(*, replaced: bool) -> None:
    store = MemoryStore()
    await store.put(KEYS.spec, b"a job")
    member = Membership(store, KEYS, registration("a"), TIMING)
    await member.join()
    keeping = asyncio.create_task(member.keep(nothing))
    await store.delete(KEYS.root, prefix=True)
    if replaced:
        await store.put(KEYS.spec, b"a job")  # of the same id, but another one
    store.expire((await member.lease()).id)
    async with asyncio.timeout(5):
        with pytest.raises(JobGone, match="job job is gone from etcd"):
            await keeping
    assert await store.get(KEYS.agent("node-00")) is None
