"""The store's contract, kept in memory and on a real etcd: leases and watches."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from tests.store.conftest import World
from tests.store.watching import WITHIN, collect, next_changes, until_gone
from tlaunch.launcher.store import Store
from tlaunch.launcher.store.protocol import (
    Change,
    Compacted,
    KeyValue,
    LeaseLost,
    Put,
)

# The etcd and its client are shared by the session: they must not begin in one test, and live in one event loop.
pytestmark = [pytest.mark.usefixtures("embedded_store"), pytest.mark.asyncio(loop_scope="session")]


# --- leases ---


async def test_keys_go_with_their_lease(world: World) -> None:
    store, key = world.store, world.prefix + "k"
    lease = await store.lease(5)
    assert (lease.valid, lease.ttl >= 5) == (True, True)
    revision = await store.put(key, b"v", lease=lease.id)
    await store.txn([], [Put(key + "2", b"v", lease.id)])
    found = await store.get(key)
    assert found is not None
    assert found.lease == lease.id
    await lease.revoke()
    assert not lease.valid
    assert (await store.list(world.prefix)).items == ()
    gone = await collect(store, world.prefix, revision + 1, 2)
    assert [(change.key, change.kv) for change in gone] == [(key, None), (key + "2", None)]
    assert gone[0].revision == gone[1].revision
    await lease.revoke()  # once more does no harm
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await lease.lost()


async def test_a_key_written_again_leaves_its_lease(world: World) -> None:
    store, key = world.store, world.prefix + "k"
    one, two = await store.lease(5), await store.lease(5)
    for name in ("free", "moved", "deleted"):
        await store.put(key + name, b"v", lease=one.id)
    await store.put(key + "free", b"w")
    await store.put(key + "moved", b"w", lease=two.id)
    await store.delete(key + "deleted")
    await store.put(key + "deleted", b"w")
    await one.revoke()
    assert [(kv.key, kv.lease) for kv in (await store.list(key)).items] == [
        (key + "deleted", 0),
        (key + "free", 0),
        (key + "moved", two.id),
    ]
    await two.revoke()


async def test_a_lease_that_does_not_exist_holds_no_keys(world: World) -> None:
    store, key = world.store, world.prefix + "k"
    with pytest.raises(LeaseLost):
        await store.put(key, b"v", lease=123456789)
    with pytest.raises(LeaseLost):
        await store.txn([], [Put(key, b"v"), Put(key + "2", b"v", 123456789)])
    assert (await store.list(world.prefix)).items == ()


async def test_a_lease_lives_as_long_as_its_holder_and_no_longer(world: World) -> None:
    store, prefix = world.store, world.prefix
    holder, crashing = await world.client(), await world.client()
    kept, left = await holder.lease(2), await crashing.lease(2)
    await store.put(prefix + "kept", b"", lease=kept.id)
    revision = await store.put(prefix + "left", b"", lease=left.id)
    await crashing.close()  # without revoking, as a crash does
    await world.pass_time(2.1)
    await until_gone(store, prefix + "left", revision)
    assert kept.valid
    assert [kv.key for kv in (await store.list(prefix)).items] == [prefix + "kept"]
    await kept.revoke()


async def test_the_holder_learns_that_its_lease_is_lost(world: World) -> None:
    lease = await world.store.lease(2)
    key = world.prefix + "k"
    revision = await world.store.put(key, b"", lease=lease.id)
    await world.expire(lease.id)
    await until_gone(world.store, key, revision)
    async with asyncio.timeout(WITHIN):
        await lease.lost()
    assert not lease.valid


# --- watches ---


async def test_a_watch_brings_every_change_since_a_past_revision(world: World) -> None:
    store, prefix = world.store, world.prefix
    start = await store.put(prefix + "seen", b"before")
    created = await store.put(prefix + "a", b"1")
    await store.put("/elsewhere/" + prefix, b"")
    changed = await store.put(prefix + "a", b"2")
    await store.delete(prefix + "a")
    both = await store.txn([], [Put(prefix + "b", b""), Put(prefix + "c", b"")])
    found = await collect(store, prefix, start, 5)
    assert found == [
        Change(prefix + "a", KeyValue(prefix + "a", b"1", created, created, 1), created),
        Change(prefix + "a", KeyValue(prefix + "a", b"2", created, changed, 2), changed),
        Change(prefix + "a", None, changed + 1),
        Change(prefix + "b", KeyValue(prefix + "b", b"", both.revision, both.revision, 1), both.revision),
        Change(prefix + "c", KeyValue(prefix + "c", b"", both.revision, both.revision, 1), both.revision),
    ]


async def test_a_watch_beside_busy_writers_has_no_gap_and_keeps_the_order(world: World) -> None:
    async def write(store: Store, name: str) -> list[int]:
        return [await store.put(f"{world.prefix}{name}", str(number).encode()) for number in range(50)]

    start = (await world.store.list(world.prefix)).revision
    watching = asyncio.create_task(collect(await world.client(), world.prefix, start, 150))
    written = await asyncio.gather(*[write(await world.client(), name) for name in "xyz"])
    found = await watching
    assert [change.revision for change in found] == sorted(revision for part in written for revision in part)


async def test_watches_do_not_disturb_each_other(world: World) -> None:
    start = (await world.store.list(world.prefix)).revision
    watching = [asyncio.create_task(collect(world.store, f"{world.prefix}{n}/", start, 1)) for n in range(3)]
    for number in range(3):
        await world.store.put(f"{world.prefix}{number}/k", b"")
    assert [[change.key for change in await task] for task in watching] == [[f"{world.prefix}{n}/k"] for n in range(3)]


async def test_a_silent_watch_says_that_it_is_alive(world: World) -> None:
    start = await world.store.put(world.prefix + "k", b"")
    asked = time.monotonic()
    async with asyncio.timeout(WITHIN), aclosing(world.store.watch(world.prefix, start)) as stream:
        first = await anext(stream)
        second = await anext(stream)
        later = time.monotonic()
        third = await anext(stream)
    assert first.changes == second.changes == third.changes == ()
    assert first.revision == second.revision == third.revision == start
    assert asked <= first.contact < second.contact <= later < third.contact <= time.monotonic()


async def test_history_before_a_compaction_is_gone(world: World) -> None:
    store, key = world.store, world.prefix + "k"
    first = await store.put(key, b"1")
    await store.delete(key)
    await store.put(key, b"3")
    await world.compact(first + 1)
    for revision in (1, first):
        with pytest.raises(Compacted) as caught:
            await collect(store, world.prefix, revision, 1)
        assert caught.value.revision == first + 1
    (found,) = await collect(store, world.prefix, first + 1, 1)
    assert found.revision == first + 2


async def test_a_watch_that_is_under_way_outlives_a_compaction(world: World) -> None:
    store, key = world.store, world.prefix + "k"
    start = await store.put(key, b"1")
    async with asyncio.timeout(WITHIN), aclosing(store.watch(key, start)) as stream:
        await store.put(key, b"2")
        await next_changes(stream)  # now the watch has caught up
        last = await store.put(key, b"3")
        await world.compact(last)
        await store.delete(key)
        found = await next_changes(stream)
        if len(found) == 1:
            found += await next_changes(stream)
    assert [change.revision for change in found] == [last, last + 1]
