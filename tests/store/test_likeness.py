"""The store in memory answers as etcd does: random histories, run on both, compared step by step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

import pytest

from tests.store.conftest import EtcdWorld
from tlaunch.launcher.store import MemoryStore, Store
from tlaunch.launcher.store.protocol import (
    BadRequest,
    Change,
    Compare,
    Delete,
    Get,
    KeyValue,
    Lease,
    LeaseLost,
    Listing,
    Operation,
    Put,
    StoreError,
    TxnResult,
)

pytestmark = [pytest.mark.usefixtures("embedded_store"), pytest.mark.asyncio(loop_scope="session")]

T = TypeVar("T")
STEPS = 150
NAMES = ("a", "a/", "a/1", "a/2", "b", "b0", "c")
VALUES = (b"", b"x", b"y")


class Twin:
    """One of the two stores, with revisions counted from its own start and leases numbered by age."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.prefix = prefix
        self.start = 0
        self.leases: list[Lease] = []

    async def begin(self) -> None:
        self.start = (await self.store.list(self.prefix)).revision

    def lease_id(self, index: int) -> int:
        """The lease of that age, or one that does not exist."""
        return 0 if index < 0 else self.leases[index].id if index < len(self.leases) else 987654321

    def plain(self, kv: KeyValue) -> KeyValue:
        ids = [0, *(lease.id for lease in self.leases)]
        return replace(
            kv,
            key=kv.key.removeprefix(self.prefix),
            create_revision=kv.create_revision - self.start,
            mod_revision=kv.mod_revision - self.start,
            lease=ids.index(kv.lease),
        )

    def listing(self, listing: Listing) -> object:
        return [self.plain(kv) for kv in listing.items], listing.revision - self.start

    def result(self, result: TxnResult) -> object:
        reads = [[self.plain(kv) for kv in read] for read in result.reads]
        return result.succeeded, result.revision - self.start, reads

    def change(self, change: Change) -> object:
        key = change.key.removeprefix(self.prefix)
        return key, change.kv and self.plain(change.kv), change.revision - self.start

    async def history(self) -> list[object]:
        """Everything that has happened, as a watch from the start tells it."""
        end = await self.store.put(self.prefix + "end", b"")
        found: list[Change] = []
        async with aclosing(self.store.watch(self.prefix, self.start)) as stream:
            async for changes in stream:
                found += changes.changes
                if changes.revision >= end:
                    break
        return [self.change(change) for change in found]


def operation(dice: random.Random, *, prefix: Callable[[str], str], lease: Callable[[int], int]) -> Operation:
    key = prefix(dice.choice(NAMES))
    match dice.randrange(4):
        case 0:
            return Get(key, prefix=dice.random() < 0.5)
        case 1:
            return Delete(key, prefix=dice.random() < 0.3)
        case _:
            return Put(key, dice.choice(VALUES), lease(dice.randrange(-3, 4)))


def condition(dice: random.Random, *, prefix: Callable[[str], str], start: int, now: int) -> Compare:
    key = prefix(dice.choice(NAMES))
    revision = dice.choice([0, start + dice.randrange(1, max(2, now - start + 1))])
    match dice.randrange(3):
        case 0:
            return Compare(key, create_revision=revision)
        case 1:
            return Compare(key, mod_revision=revision)
        case _:
            return Compare(key, value=dice.choice(VALUES))


async def step(twin: Twin, seed: int) -> object:
    """Do what the seed says, and return what came of it in terms that both stores share."""
    dice = random.Random(seed)
    store = twin.store

    def prefix(name: str) -> str:
        return twin.prefix + name

    match dice.randrange(8):
        case 0:
            return twin.listing(await store.list(prefix(dice.choice(("", *NAMES)))))
        case 1:
            return await store.delete(prefix(dice.choice(NAMES)), prefix=dice.random() < 0.3)
        case 2 if len(twin.leases) < 4:
            twin.leases.append(await store.lease(60))
            return None
        case 3 if twin.leases and dice.random() < 0.3:
            await dice.choice(twin.leases).revoke()
            return None
        case 4:
            lease = twin.lease_id(dice.randrange(-2, 4))
            return await store.put(prefix(dice.choice(NAMES)), dice.choice(VALUES), lease=lease) - twin.start
        case _:
            now = (await store.list(twin.prefix)).revision
            compare = [
                condition(dice, prefix=prefix, start=twin.start, now=now) for _ in range(dice.choice((0, 1, 1, 2)))
            ]
            branches = [
                [operation(dice, prefix=prefix, lease=twin.lease_id) for _ in range(dice.randrange(1, 4))]
                for _ in range(2)
            ]
            return twin.result(await store.txn(compare, *branches))


async def outcome(twin: Twin, seed: int) -> object:
    try:
        return await step(twin, seed)
    except StoreError as error:
        return type(error)


def pairs(left: list[object], right: list[object]) -> Iterator[tuple[object, object]]:
    assert len(left) == len(right)
    return zip(left, right, strict=True)


@pytest.mark.parametrize("seed", range(4))
async def test_random_histories_are_the_same(etcd_world: EtcdWorld, seed: int) -> None:
    real = Twin(etcd_world.store, etcd_world.prefix)
    memory = Twin(MemoryStore(), "/memory/")
    await real.begin()
    await memory.begin()
    outcomes = []
    for number in range(STEPS):
        expected = await outcome(real, 1000 * seed + number)
        assert await outcome(memory, 1000 * seed + number) == expected, f"step {number} of seed {seed}"
        outcomes.append(expected)
    for theirs, ours in pairs(await real.history(), await memory.history()):
        assert theirs == ours
    assert {found for found in outcomes if isinstance(found, type)} == {LeaseLost, BadRequest}
    for lease in real.leases:
        await lease.revoke()
