"""A mirror is equal to what it mirrors, whatever happens to the watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from tests.store.conftest import World
from tlaunch.launcher.store import MemoryStore, Mirror
from tlaunch.launcher.store.protocol import (
    Changes,
    Compacted,
    Get,
    Listing,
    StoreRefused,
    StoreUnavailable,
    WatchBroken,
)

WITHIN = 10.0


async def until(mirror: Mirror, expected: dict[str, bytes]) -> None:
    """Wait until the mirror shows this."""
    async with asyncio.timeout(WITHIN):
        while {key: kv.value for key, kv in mirror.items.items()} != expected:
            await mirror.changed(None)


async def until_told(store: MemoryStore) -> None:
    """Wait until another watch, begun later than the mirror's, has seen the present."""
    await store.put("told", b"")
    async with aclosing(store.watch("told", store.revision - 1)) as stream:
        async for changes in stream:
            if changes.changes:
                return


def in_contact(mirror: Mirror) -> bool:
    return mirror.in_contact_since is not None


class Watched(MemoryStore):
    """A memory whose watches can be broken or refused by themselves."""

    def __init__(self) -> None:
        super().__init__(probe=0.05)
        self.lists = 0
        self.end = asyncio.Event()
        self.error: Exception = WatchBroken("for the test")

    async def list(self, prefix: str, *, timeout: float | None = None) -> Listing:
        self.lists += 1
        return await super().list(prefix, timeout=timeout)

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes, None]:
        async for changes in super().watch(prefix, revision):
            if self.end.is_set():
                self.end.clear()
                raise self.error
            yield changes


@pytest.mark.usefixtures("embedded_store")
@pytest.mark.asyncio(loop_scope="session")
async def test_it_follows_its_prefix(world: World) -> None:
    store, prefix = world.store, world.prefix
    await store.put(prefix + "a/1", b"1")
    await store.put(prefix + "b", b"elsewhere")
    async with Mirror(store, prefix + "a/") as mirror:
        assert {key: kv.value for key, kv in mirror.items.items()} == {prefix + "a/1": b"1"}
        await store.put(prefix + "a/2", b"2")
        await until(mirror, {prefix + "a/1": b"1", prefix + "a/2": b"2"})
        await store.delete(prefix + "a/1")
        revision = await store.put(prefix + "a/2", b"3")
        await until(mirror, {prefix + "a/2": b"3"})
        assert mirror.revision == revision
        assert mirror.items[prefix + "a/2"].mod_revision == revision


async def test_several_prefixes_are_one_copy() -> None:
    store = MemoryStore()
    await store.put("a/1", b"")
    await store.put("b/1", b"")
    await store.put("c/1", b"")
    async with Mirror(store, "a/", "c/") as mirror:
        await store.put("c/2", b"")
        await store.put("b/2", b"")
        await store.delete("a/1")
        await until(mirror, {"c/1": b"", "c/2": b""})


@pytest.mark.parametrize("prefixes", [(), ("a", "ab"), ("a", "a"), ("", "a")])
def test_prefixes_must_not_overlap(prefixes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="prefixes"):
        Mirror(MemoryStore(), *prefixes)


async def test_changes_wake_the_reader_once_and_are_never_missed() -> None:
    store = MemoryStore()
    async with Mirror(store, "a") as mirror:
        assert await mirror.changed(1)  # contact was made
        assert not await mirror.changed(0.01)
        await store.put("a", b"1")
        await store.put("a", b"2")
        async with asyncio.timeout(WITHIN):
            await until_told(store)
        assert await mirror.changed(0)  # although it came when nobody was waiting
        assert mirror.items["a"].value == b"2"
        assert not await mirror.changed(0.01)
        await store.put("elsewhere", b"")
        assert not await mirror.changed(0.01)


async def test_keys_deleted_behind_a_broken_watch_vanish() -> None:
    store = Watched()
    async with Mirror(store, "a/") as mirror:
        await store.put("a/old", b"")
        await until(mirror, {"a/old": b""})
        store.outage()
        store.heal()
        await store.delete("a/old")
        await store.put("a/new", b"")
        store.compact()
        await until(mirror, {"a/new": b""})
        assert store.lists >= 2


@pytest.mark.parametrize("error", [WatchBroken("for the test"), StoreUnavailable("for the test"), Compacted(7)])
async def test_it_lists_again_when_the_watch_ends(error: Exception) -> None:
    store = Watched()
    async with Mirror(store, "a/") as mirror:
        store.error = error
        store.end.set()
        async with asyncio.timeout(WITHIN):
            while store.lists < 2:
                await mirror.changed(None)
        await store.put("a/1", b"")
        await until(mirror, {"a/1": b""})


async def test_an_outage_is_outlived(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = MemoryStore(probe=0.05)
    other = mine.client()
    await mine.put("a/1", b"1")
    async with Mirror(mine, "a/", gap=0.2) as mirror:
        began = mirror.in_contact_since
        assert began is not None
        mine.outage(only_me=True)
        await other.put("a/1", b"2")
        async with asyncio.timeout(WITHIN):
            while in_contact(mirror):
                await mirror.changed(0.05)
        assert mirror.items["a/1"].value == b"1"  # what it knew
        healed = time.monotonic()
        assert mirror.contact < healed - 0.2
        mine.heal()
        await until(mirror, {"a/1": b"2"})
        assert mirror.in_contact_since is not None
        assert mirror.in_contact_since >= healed > began


async def test_contact_is_unbroken_while_the_watch_is_only_replaced() -> None:
    store = Watched()
    async with Mirror(store, "a/") as mirror:
        began = mirror.in_contact_since
        store.end.set()
        async with asyncio.timeout(WITHIN):
            while store.lists < 2:
                await mirror.changed(None)
        assert mirror.in_contact_since == began


async def test_contact_is_proven_while_nothing_happens() -> None:
    store = MemoryStore(probe=0.02)
    async with Mirror(store, "a/", gap=0.2) as mirror:
        first = mirror.contact
        async with asyncio.timeout(WITHIN):
            while mirror.contact < first + 0.5:  # more than the gap
                await mirror.changed(0.05)
                assert mirror.in_contact_since is not None


async def test_a_refusal_reaches_the_reader() -> None:
    store = Watched()
    async with Mirror(store, "a/") as mirror:
        assert await mirror.changed(1)
        store.error = StoreRefused("wrong password")
        store.end.set()
        for _ in range(2):  # and stays
            with pytest.raises(StoreRefused, match="wrong password"):
                await mirror.changed(WITHIN)


async def test_no_contact_at_the_beginning_is_an_error() -> None:
    store = MemoryStore()
    store.outage()
    with pytest.raises(StoreUnavailable):
        async with Mirror(store, "a"):
            pass


async def test_it_can_begin_with_what_another_request_has_read() -> None:
    store = Watched()
    await store.put("a/old", b"")
    read = await store.txn([], [Get("a/", prefix=True)])
    asked = time.monotonic()
    await store.put("a/new", b"")
    mirror = Mirror(store, "a/")
    mirror.begin(Listing(read.reads[0], read.revision), asked)
    async with mirror, asyncio.timeout(WITHIN):
        assert mirror.contact == asked
        assert {*mirror.items} == {"a/old"}
        while {*mirror.items} != {"a/old", "a/new"}:
            await mirror.changed(None)
    assert store.lists == 0


async def test_it_ends_with_its_context() -> None:
    store = MemoryStore()
    async with Mirror(store, "a", "b"):
        assert len(asyncio.all_tasks()) == 3
    assert len(asyncio.all_tasks()) == 1
    assert not store._shared.watchers
