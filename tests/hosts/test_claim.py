"""A job's id: one launcher's at a time, whatever happens to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.observe.jobs import JOB, KEYS, SPEC, START, fill
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Launcher
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.hosts.claim import claim
from tlaunch.launcher.hosts.registry import JobRunning
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.protocol import Compare, KeyValue, Operation, TxnResult

TIMING = Timing(retry=0.01)
OTHER = encode(Launcher("elsewhere", 7))


@dataclass
class Losses:
    """What ``claim`` tells of its loss."""

    told: list[str] = field(default_factory=list)
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, reason: str) -> None:
        self.told.append(reason)
        self.happened.set()


async def keys_of(store: MemoryStore, keys: Keys = KEYS) -> list[str]:
    return [kv.key.removeprefix(keys.root) for kv in (await store.list(keys.root)).items]


async def held(store: MemoryStore, lease: int) -> KeyValue:
    """Wait until the launcher's key is there, with another lease than this."""
    listing = await store.list(KEYS.launcher)
    if not listing.items or listing.items[0].lease == lease:
        async for changes in store.watch(KEYS.launcher, listing.revision):
            if any(change.kv is not None and change.kv.lease != lease for change in changes.changes):
                break
    kv = await store.get(KEYS.launcher)
    assert kv is not None
    return kv


async def test_what_an_earlier_job_has_left_is_removed_and_nothing_else() -> None:
    store, other = MemoryStore(), Keys(JOB + "-b")
    await fill(store, START)
    await fill(store, START, keys=other)
    before = await keys_of(store, other)
    async with claim(store, KEYS, SPEC, TIMING, pytest.fail):
        assert await keys_of(store) == ["launcher", "spec"]
        await fill(store, START)
    assert await keys_of(store) == []
    assert await keys_of(store, other) == before


async def test_the_keys_of_a_large_job_take_no_request_each() -> None:
    class Counting(MemoryStore):
        requests = 0

        async def txn(
            self,
            compare: Sequence[Compare],
            then: Sequence[Operation],
            otherwise: Sequence[Operation] = (),
            *,
            timeout: float | None = None,
        ) -> TxnResult:
            self.requests += 1
            return await super().txn(compare, then, otherwise, timeout=timeout)

        async def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
            self.requests += 1
            return await super().delete(key, prefix=prefix, timeout=timeout)

    store = Counting()
    for node in range(1000):
        await store.put(KEYS.ack(f"node-{node}"), b"")
    async with claim(store, KEYS, SPEC, TIMING, pytest.fail):
        assert await keys_of(store) == ["launcher", "spec"]
    assert store.requests < 10


async def test_an_id_in_use_is_refused_and_its_keys_stay() -> None:
    store = MemoryStore()
    await fill(store, START)
    await store.put(KEYS.launcher, OTHER)
    before = await keys_of(store)
    with pytest.raises(JobRunning, match=r"^job 'gpt-a1' is already running \(pid 7 on elsewhere\); choose another"):
        async with claim(store, KEYS, SPEC, TIMING, pytest.fail):
            pytest.fail("it must not get in")
    assert await keys_of(store) == before


@pytest.mark.parametrize("applied", [True, False])
async def test_the_id_is_taken_again_though_the_answer_gets_lost(applied: bool) -> None:
    store = MemoryStore()
    outside = store.client()
    async with claim(store, KEYS, SPEC, TIMING, pytest.fail):
        first = await held(outside, 0)
        store.fail_next_write(applied=applied)
        store.expire(first.lease)
        second = await held(outside, first.lease)
        assert (second.value, second.lease != 0) == (first.value, True)
        await asyncio.sleep(0)
    assert await keys_of(outside) == []


async def test_an_id_that_another_has_taken_meanwhile_is_left_to_it() -> None:
    store, losses = MemoryStore(), Losses()
    outside = store.client()
    async with claim(store, KEYS, SPEC, TIMING, losses):
        first = await held(outside, 0)
        store.outage(only_me=True)
        store.expire(first.lease)
        await outside.put(KEYS.launcher, OTHER)
        store.heal()
        async with asyncio.timeout(10):
            await losses.happened.wait()
    assert losses.told == ["another launcher has taken the job id 'gpt-a1' (pid 7 on elsewhere); etcd was out of reach"]
    assert await keys_of(outside) == ["launcher", "spec"], "they are the other's now"
