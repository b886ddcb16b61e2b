"""What the store promises while real members of a real cluster die, stop and lose each other.

The promises, with their bounds in seconds:

- a watch whose member was killed or stopped goes on at another one within ``RESUMED``, and no change is lost;
- writes go on within ``WRITTEN``; one that met the failure is unknown, never silently lost or done twice;
- a lease is not lost while a majority lives;
- without a majority every call ends within its timeout, and a write that was not sent says so;
- after recovery everything works again within ``RECOVERED``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.store.members import Member, Members, ctl
from tests.store.traffic import following, writing
from tlaunch.launcher.store import EtcdStore, Mirror, connect
from tlaunch.launcher.store.protocol import (
    Changes,
    Compacted,
    Lease,
    StoreUnavailable,
    StoreUnknown,
    WatchBroken,
)

pytestmark = pytest.mark.usefixtures("shared_members")
log = logging.getLogger(__name__)  # for what is measured; `pytest --log-level info -rP` shows it

RESUMED = 5.0
WRITTEN = 5.0
RECOVERED = 5.0
WITHIN = 20.0

_tests = iter(range(1000))


@pytest.fixture
def prefix() -> str:
    return f"/faults/{next(_tests)}/"


@pytest.fixture
async def store(members: Members) -> AsyncIterator[EtcdStore]:
    store = await connect(members.endpoints)
    yield store
    await store.close()


@pytest.fixture
async def safe(members: Members) -> AsyncIterator[Callable[[Member], Awaitable[EtcdStore]]]:
    """Make a client of everything but one member."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(victim: Member) -> EtcdStore:
            others = type(members.endpoints)(tuple(member.host for member in members.others(victim)))
            store = await connect(others)
            stack.push_async_callback(store.close)
            return store

        yield make


def in_contact(mirror: Mirror) -> bool:
    return mirror.in_contact_since is not None


async def to_the_end(stream: AsyncGenerator[Changes, None]) -> None:
    """Read until the watch ends with an error."""
    async with asyncio.timeout(WITHIN), aclosing(stream):
        async for _ in stream:
            pass


async def lost_at(lease: Lease) -> float:
    """Wait until the holder knows that the lease is lost, and return when that was."""
    await lease.lost()
    return time.monotonic()


# --- one member fails ---


@pytest.mark.parametrize("fault", ["kill", "stop"])
@pytest.mark.parametrize("victim_leads", [True, False], ids=["leader", "follower"])
async def test_the_member_in_use_fails_and_nothing_is_lost(
    members: Members, store: EtcdStore, prefix: str, fault: str, victim_leads: bool
) -> None:
    victim = members.at(store.member)
    members.move_leader(victim if victim_leads else members.others(victim)[0])
    lease = await store.lease(3)
    await store.put(prefix + "leased", b"", lease=lease.id)
    async with following(store, prefix + "n/") as follower, writing(store, prefix + "n/") as writer:
        await writer.more(20, WITHIN)
        getattr(victim, fault)()
        failed = time.monotonic()
        await writer.more(20, WRITTEN)
        resumed = await follower.seen(writer.written[-1], RESUMED)
        silent = time.monotonic() - failed
        await writer.close()
        await follower.seen(writer.written[-1], WITHIN)
        keys = [change.key for change in follower.changes][: len(writer.written)]
    assert lease.valid
    assert await store.get(prefix + "leased") is not None
    assert keys == writer.written
    assert follower.breaks >= 1
    assert store.member != victim.host
    role = "leader" if victim_leads else "follower"
    log.info(
        "%s %s: watch resumed after %.2f s (written for %.2f s, then waited %.2f s)",
        fault,
        role,
        silent,
        silent - resumed,
        resumed,
    )
    log.info("%s %s: longest write %.2f s, %d unknown", fault, role, writer.longest, writer.unknown)
    await lease.revoke()


async def test_a_lease_needs_no_help_to_outlive_a_stopped_member(
    members: Members, store: EtcdStore, safe: Callable[[Member], Awaitable[EtcdStore]], prefix: str
) -> None:
    victim = members.at(store.member)
    members.move_leader(members.others(victim)[0])  # an election may take longer than so short a lease lasts
    other = await safe(victim)
    lease = await store.lease(2)
    await store.put(prefix + "k", b"", lease=lease.id)
    victim.stop()
    await asyncio.sleep(lease.ttl + 1)  # without another request that would find another member for it
    assert lease.valid
    assert await other.get(prefix + "k") is not None
    await lease.revoke()


async def test_a_leader_change_disturbs_no_watch(members: Members, store: EtcdStore, prefix: str) -> None:
    lease = await store.lease(5)
    async with following(store, prefix) as follower, writing(store, prefix) as writer:
        await writer.more(20, WITHIN)
        old = members.leader()
        members.move_leader(members.others(old)[0])
        assert members.leader() is not old
        await writer.more(20, WRITTEN)
        await writer.close()
        await follower.seen(writer.written[-1], RESUMED)
        assert [change.key for change in follower.changes][: len(writer.written)] == writer.written
    assert follower.breaks == 0
    assert lease.valid
    await lease.revoke()


async def test_a_read_that_meets_a_stopped_member_is_answered_by_another(
    members: Members, store: EtcdStore, prefix: str
) -> None:
    victim = members.at(store.member)
    members.move_leader(members.others(victim)[0])
    victim.stop()
    began = time.monotonic()
    assert await store.get(prefix + "k", timeout=20.0) is None
    assert time.monotonic() - began < 3.0
    assert store.member != victim.host


async def test_a_lease_of_a_cluster_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    with Members(tmp_path) as members:
        members.heal()
        store = await connect(members.endpoints)
        lease = await store.lease(30.0)
        for member in members.members:
            member.kill()
        began = time.monotonic()
        await lease.revoke()
        assert time.monotonic() - began < 1.0
        await store.close()


async def test_a_write_that_meets_a_stopping_member_is_unknown(members: Members, store: EtcdStore, prefix: str) -> None:
    victim = members.at(store.member)
    await store.put(prefix + "before", b"")  # so that the member has proven to be alive
    victim.stop()
    began = time.monotonic()
    with pytest.raises(
        StoreUnknown, match=f"etcd at {victim.host} or its leader was lost during the put of '{prefix}k'"
    ):
        await store.put(prefix + "k", b"", timeout=20.0)
    assert time.monotonic() - began < 3.0  # a hopeless write is not waited for
    assert await store.get(prefix + "before") is not None  # and the next call goes elsewhere
    assert store.member != victim.host


async def test_a_write_to_the_only_endpoint_is_waited_for(members: Members, prefix: str) -> None:
    alone = members.members[0]
    members.move_leader(members.others(alone)[0])
    store = await connect(type(members.endpoints)((alone.host,)))
    await store.put(prefix + "before", b"")
    alone.stop()
    writing = asyncio.create_task(store.put(prefix + "k", b"", timeout=WITHIN))
    done, _ = await asyncio.wait({writing}, timeout=1.8)  # longer than others would have got
    assert not done
    alone.go_on()
    await writing
    await store.close()


async def test_a_write_never_goes_to_a_member_that_has_been_silent(
    members: Members, store: EtcdStore, prefix: str
) -> None:
    victim = members.at(store.member)
    members.move_leader(members.others(victim)[0])  # what goes to a leader that stops is unknown in any case
    await asyncio.sleep(1.1)  # after which a member has to prove again that it is alive
    victim.stop()
    await store.put(prefix + "k", b"")
    assert store.member != victim.host


async def test_a_compaction_during_a_broken_watch_loses_no_deletion(
    members: Members,
    store: EtcdStore,
    safe: Callable[[Member], Awaitable[EtcdStore]],
    prefix: str,
) -> None:
    victim = members.at(store.member)
    other = await safe(victim)
    for name in ("stays", "goes"):
        await other.put(prefix + name, b"old")
    members.move_leader(members.others(victim)[0])
    async with Mirror(store, prefix) as mirror:
        start = mirror.revision
        victim.stop()
        await other.delete(prefix + "goes")
        await other.put(prefix + "stays", b"new")
        last = await other.put(prefix + "comes", b"new")
        ctl(members.others(victim)[:1], "compact", str(last))
        async with asyncio.timeout(RESUMED):
            while set(mirror.items) != {prefix + "stays", prefix + "comes"}:
                await mirror.changed(None)
        assert mirror.items[prefix + "stays"].value == b"new"
    with pytest.raises(Compacted):
        await to_the_end(other.watch(prefix, start))


# --- the majority fails ---


async def test_a_member_without_a_leader_does_not_pretend(members: Members, prefix: str) -> None:
    alone, *others = members.members
    store = await connect(type(members.endpoints)((alone.host,)))
    revision = await store.put(prefix + "k", b"")
    async with aclosing(store.watch(prefix, revision)) as stream:
        await anext(stream)
        for member in others:
            member.stop()
        # It still answers progress requests, but knows of nothing any more.
        with pytest.raises(WatchBroken, match="no leader"):
            await to_the_end(stream)
    with pytest.raises(StoreUnavailable, match="no leader"):
        await store.get(prefix + "k", timeout=0.5)
    with pytest.raises(StoreUnavailable, match="no leader"):
        await store.put(prefix + "k", b"", timeout=0.5)
    await store.close()


@pytest.mark.parametrize("fault", ["kill", "stop"])
async def test_all_members_fail_and_come_back(members: Members, store: EtcdStore, prefix: str, fault: str) -> None:
    lease = await store.lease(2)
    await store.put(prefix + "k", b"1")
    async with Mirror(store, prefix, gap=2.5) as mirror:
        began = mirror.in_contact_since
        for member in members.members:
            getattr(member, fault)()
        failed = time.monotonic()
        losing = asyncio.create_task(lost_at(lease))
        await asyncio.sleep(1.0)  # so that no member counts as proven
        for call in (store.get(prefix + "k", timeout=0.8), store.put(prefix + "k", b"2", timeout=0.8)):
            asked = time.monotonic()
            with pytest.raises(StoreUnavailable, match=r"no etcd member of .* answered .* expected a running cluster"):
                await call
            assert time.monotonic() - asked < 1.2
        async with asyncio.timeout(WITHIN):
            assert await losing - failed <= lease.ttl + 0.5
        assert not lease.valid
        async with asyncio.timeout(WITHIN):
            while in_contact(mirror):
                await mirror.changed(0.1)
        assert mirror.items[prefix + "k"].value == b"1"
        back = time.monotonic()
        for member in members.members:
            member.start()
        await store.put(prefix + "k", b"3", timeout=RECOVERED)
        async with asyncio.timeout(RECOVERED):
            while mirror.items[prefix + "k"].value != b"3" or mirror.in_contact_since is None:
                await mirror.changed(0.1)
        log.info("%s all: the mirror was whole again %.2f s after the return", fault, time.monotonic() - back)
        assert began is not None
        assert mirror.in_contact_since > back


async def test_the_lease_of_a_holder_that_hangs_expires(members: Members, prefix: str) -> None:
    holder = await connect(members.endpoints)
    lease = await holder.lease(2)
    reader = await connect(members.endpoints)
    revision = await reader.put(prefix + "k", b"", lease=lease.id)
    await asyncio.sleep(lease.ttl / 2)  # in which it has been renewed
    lease._task.cancel()  # a holder that hangs renews nothing
    async with asyncio.timeout(WITHIN), aclosing(reader.watch(prefix, revision)) as stream:
        async for message in stream:
            if message.changes:
                break
    assert not lease.valid  # by its own clock, with nobody to tell it
    for store in (holder, reader):
        await store.close()
