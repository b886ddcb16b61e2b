"""The store's contract, which every implementation keeps: in memory and on a real etcd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from tests.store.conftest import World
from tlaunch.launcher.store import Store
from tlaunch.launcher.store.protocol import (
    Change,
    Changes,
    Compacted,
    Compare,
    Delete,
    Get,
    KeyValue,
    LeaseLost,
    Operation,
    Put,
    StoreError,
    StoreUnavailable,
)

# The etcd and its client are shared by the session: they must not begin in one test, and live in one event loop.
pytestmark = [pytest.mark.usefixtures("embedded_store"), pytest.mark.asyncio(loop_scope="session")]

WITHIN = 10.0


async def collect(store: Store, prefix: str, revision: int, count: int) -> list[Change]:
    """Watch until ``count`` changes have come."""
    found: list[Change] = []
    async with asyncio.timeout(WITHIN), aclosing(store.watch(prefix, revision)) as stream:
        async for changes in stream:
            found += changes.changes
            # A message never claims more than it has brought.
            assert changes.revision == (found[-1].revision if found else revision)
            if len(found) >= count:
                break
    return found


async def next_changes(stream: AsyncIterator[Changes]) -> tuple[Change, ...]:
    """Return the next message that is not empty."""
    async for message in stream:
        if message.changes:
            return message.changes
    raise AssertionError("the watch has ended")


async def until_gone(store: Store, key: str, revision: int) -> None:
    """Watch until a key is deleted."""
    async with asyncio.timeout(WITHIN), aclosing(store.watch(key, revision)) as stream:
        async for changes in stream:
            if any(change.kv is None for change in changes.changes):
                return


# --- single keys ---


async def test_a_key_remembers_its_revisions(world: World) -> None:
    store, key = world.store, world.prefix + "k"
    assert await store.get(key) is None
    created = await store.put(key, b"\0one\xff")
    assert await store.get(key) == KeyValue(key, b"\0one\xff", created, created, 1)
    changed = await store.put(key, b"")
    assert changed > created
    assert await store.get(key) == KeyValue(key, b"", created, changed, 2)
    assert await store.delete(key) == 1
    assert await store.get(key) is None
    again = await store.put(key, b"again")
    assert await store.get(key) == KeyValue(key, b"again", again, again, 1)


async def test_each_write_raises_the_revision_by_one(world: World) -> None:
    store, key = world.store, world.prefix + "k"
    first = await store.put(key, b"1")
    assert await store.put(key, b"1") == first + 1
    assert await store.delete(key) == 1
    assert (await store.list(world.prefix)).revision == first + 2
    assert await store.delete(key) == 0  # nothing was there, so nothing has happened
    assert (await store.list(world.prefix)).revision == first + 2


async def test_keys_are_text(world: World) -> None:
    key = world.prefix + "grüße/🙂"
    await world.store.put(key, b"v")
    found = await world.store.get(key)
    assert found is not None
    assert found.key == key
    assert [kv.key for kv in (await world.store.list(world.prefix + "grü")).items] == [key]


# --- below a prefix ---


async def test_a_listing_holds_what_is_below_the_prefix_sorted(world: World) -> None:
    store, prefix = world.store, world.prefix
    for name in ("b", "a/2", "a/1", "a", "a0", "a.", "ab"):
        await store.put(prefix + name, name.encode())
    listing = await store.list(prefix + "a/")
    assert [kv.key for kv in listing.items] == [prefix + "a/1", prefix + "a/2"]
    everything = await store.list(prefix)
    assert [kv.value for kv in everything.items] == [b"a", b"a.", b"a/1", b"a/2", b"a0", b"ab", b"b"]
    assert everything.revision == listing.revision == max(kv.mod_revision for kv in everything.items)
    assert (await store.list(prefix + "none/")).items == ()
    assert {kv.key for kv in everything.items} <= {kv.key for kv in (await store.list("")).items}


async def test_a_prefix_is_deleted_as_one_revision(world: World) -> None:
    store, prefix = world.store, world.prefix
    for name in ("a/1", "a/2", "b"):
        await store.put(prefix + name, b"")
    before = (await store.list(prefix)).revision
    assert await store.delete(prefix + "a/", prefix=True) == 2
    after = await store.list(prefix)
    assert [kv.key for kv in after.items] == [prefix + "b"]
    assert after.revision == before + 1
    assert await store.delete(prefix + "a/", prefix=True) == 0


async def test_a_listing_may_be_large(world: World) -> None:
    value = bytes(1_000_000)
    for number in range(6):
        await world.store.put(f"{world.prefix}{number}", value)
    listing = await world.store.list(world.prefix)
    assert [len(kv.value) for kv in listing.items] == [len(value)] * 6
    await world.store.delete(world.prefix, prefix=True)


# --- transactions ---


async def test_a_comparison_decides_which_branch_runs(world: World) -> None:
    store, key = world.store, world.prefix + "k"
    created = await store.put(key, b"old")
    changed = await store.put(key, b"value")
    cases = {
        Compare(key, create_revision=created): True,
        Compare(key, create_revision=changed): False,
        Compare(key, create_revision=0): False,
        Compare(key, mod_revision=changed): True,
        Compare(key, mod_revision=created): False,
        Compare(key, mod_revision=0): False,
        Compare(key, value=b"value"): True,
        Compare(key, value=b"old"): False,
        Compare(key, value=b""): False,
        Compare(world.prefix + "none", create_revision=0): True,
        Compare(world.prefix + "none", mod_revision=0): True,
        Compare(world.prefix + "none", create_revision=1): False,
        Compare(world.prefix + "none", value=b""): False,
    }
    for number, (condition, holds) in enumerate(cases.items()):
        ran = f"{world.prefix}ran/{number}"
        result = await store.txn([condition], [Put(ran, b"then")], [Put(ran, b"otherwise")])
        assert result.succeeded is holds, condition
        written = await store.get(ran)
        assert written is not None
        assert written.value == (b"then" if holds else b"otherwise")
        assert written.mod_revision == result.revision


async def test_all_comparisons_must_hold(world: World) -> None:
    key = world.prefix + "k"
    await world.store.put(key, b"v")
    conditions = [Compare(key, value=b"v"), Compare(key, create_revision=0)]
    assert not (await world.store.txn(conditions, [Put(key, b"w")])).succeeded
    assert (await world.store.txn([], [Put(key, b"w")])).succeeded


async def test_a_lost_comparison_changes_nothing(world: World) -> None:
    store, key = world.store, world.prefix + "k"
    revision = await store.put(key, b"v")
    result = await store.txn([Compare(key, create_revision=0)], [Put(key + "2", b"w"), Delete(key)])
    assert (result.succeeded, result.revision, result.reads) == (False, revision, ())
    found = await store.get(key)
    assert found is not None
    assert found.mod_revision == revision


async def test_a_transaction_is_one_revision_and_reads_its_own_writes(world: World) -> None:
    store, prefix = world.store, world.prefix
    await store.put(prefix + "gone", b"")
    await store.put(prefix + "kept", b"1")
    operations: list[Operation] = [
        Get(prefix + "new"),
        Put(prefix + "new", b"2"),
        Get(prefix + "new"),
        Delete(prefix + "gone"),
        Get(prefix, prefix=True),
    ]
    result = await store.txn([], operations)
    before, after, everything = result.reads
    assert before == ()
    assert after == (KeyValue(prefix + "new", b"2", result.revision, result.revision, 1),)
    assert [kv.key for kv in everything] == [prefix + "kept", prefix + "new"]
    assert (await store.list(prefix)).revision == result.revision


async def test_either_branch_reads(world: World) -> None:
    key = world.prefix + "k"
    await world.store.put(key, b"v")
    for value in (b"v", b"x"):
        result = await world.store.txn([Compare(key, value=value)], [Get(key)], [Get(key), Get(key + "none")])
        assert result.succeeded is (value == b"v")
        assert [kv.value for kv in result.reads[0]] == [b"v"]
        assert result.reads[1:] == (() if result.succeeded else ((),))


@pytest.mark.parametrize(
    "operations",
    [
        [Put("a", b"1"), Put("a", b"2")],
        [Put("a", b"1"), Delete("a")],
        [Delete("", prefix=True), Put("a", b"1")],
        [Put("a", b"1"), Put("", b"2")],
        [Put("a", b"1"), Get("")],
    ],
)
async def test_a_transaction_that_can_never_work_is_refused(world: World, operations: list[Operation]) -> None:
    def below(operation: Operation) -> Operation:
        if isinstance(operation, Put) and operation.key:
            return Put(world.prefix + operation.key, operation.value)
        if isinstance(operation, Delete):
            return Delete(world.prefix + operation.key, operation.prefix)
        return operation

    with pytest.raises(StoreError) as caught:
        await world.store.txn([], [below(operation) for operation in operations])
    assert type(caught.value) is StoreError
    assert (await world.store.list(world.prefix)).items == ()


async def test_an_empty_key_is_refused(world: World) -> None:
    for call in (world.store.get(""), world.store.put("", b""), world.store.delete("")):
        with pytest.raises(StoreError):
            await call


async def test_concurrent_writers_lose_comparisons_but_no_updates(world: World) -> None:
    key = world.prefix + "counter"
    await world.store.put(key, b"0")
    lost = 0

    async def add(store: Store) -> None:
        nonlocal lost
        for _ in range(10):
            while True:
                kv = await store.get(key)
                assert kv is not None
                written = str(int(kv.value) + 1).encode()
                if (await store.txn([Compare(key, mod_revision=kv.mod_revision)], [Put(key, written)])).succeeded:
                    break
                lost += 1

    await asyncio.gather(*[add(await world.client()) for _ in range(4)])
    final = await world.store.get(key)
    assert final is not None
    assert final.value == b"40"
    assert lost > 0


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


# --- the end ---


async def test_a_closed_client_is_of_no_use(world: World) -> None:
    client = await world.client()
    await client.put(world.prefix + "k", b"")
    await client.close()
    await client.close()
    for call in (client.get("k"), client.put("k", b""), client.txn([], [Get("k")]), client.lease(5)):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call
    assert await world.store.get(world.prefix + "k") is not None
