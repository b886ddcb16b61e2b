"""The store's contract, kept in memory and on a real etcd: keys, prefixes, transactions."""

from __future__ import annotations

import asyncio

import pytest

from tests.store.conftest import World
from tlaunch.launcher.store import Store
from tlaunch.launcher.store.protocol import (
    BadRequest,
    Compare,
    Delete,
    Get,
    KeyValue,
    Operation,
    Put,
    StoreUnavailable,
)

# The etcd and its client are shared by the session: they must not begin in one test, and live in one event loop.
pytestmark = [pytest.mark.usefixtures("embedded_store"), pytest.mark.asyncio(loop_scope="session")]


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

    with pytest.raises(BadRequest):
        await world.store.txn([], [below(operation) for operation in operations])
    assert (await world.store.list(world.prefix)).items == ()


async def test_an_empty_key_is_refused(world: World) -> None:
    for call in (world.store.get(""), world.store.put("", b""), world.store.delete("")):
        with pytest.raises(BadRequest):
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
