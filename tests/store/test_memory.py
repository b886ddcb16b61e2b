"""The hooks of the in-memory store, with which other tests break it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from tlaunch.launcher.store import MemoryStore
from tlaunch.launcher.store.protocol import StoreError, StoreUnavailable, StoreUnknown, WatchBroken


async def test_an_outage_stops_everything_for_everybody() -> None:
    store = MemoryStore()
    other = store.client()
    async with aclosing(other.watch("", 1)) as stream:
        await anext(stream)
        store.outage()
        with pytest.raises(WatchBroken):
            await anext(stream)
    for call in (other.get("k"), other.list(""), other.put("k", b""), other.delete("k"), other.lease(1)):
        with pytest.raises(StoreUnavailable):
            await call
    store.heal()
    assert await other.get("k") is None  # the put was certainly not done


async def test_one_client_can_be_cut_off_alone() -> None:
    store = MemoryStore()
    other = store.client()
    other.outage(only_me=True)
    await store.put("k", b"")
    with pytest.raises(StoreUnavailable):
        await other.get("k")
    other.heal()
    assert await other.get("k") is not None


async def test_leases_are_renewed_in_contact_and_expire_without() -> None:
    store = MemoryStore()
    cut_off = store.client()
    kept, lost = await store.lease(10), await cut_off.lease(10)
    await store.put("kept", b"", lease=kept.id)
    await cut_off.put("lost", b"", lease=lost.id)
    store.advance(9)
    cut_off.outage(only_me=True)
    store.advance(9)
    assert lost.valid  # renewed nine seconds ago
    store.advance(1)
    assert (kept.valid, lost.valid) == (True, False)
    await lost.lost()
    assert [kv.key for kv in (await store.list("")).items] == ["kept"]
    store.advance(1000)
    assert kept.valid


async def test_a_lease_that_gets_back_in_time_is_kept() -> None:
    store = MemoryStore()
    lease = await store.lease(10)
    store.outage()
    store.advance(9)
    store.heal()
    store.advance(9)
    assert lease.valid


async def test_a_lease_can_expire_behind_its_holder() -> None:
    store = MemoryStore()
    lease = await store.lease(10)
    waiting = asyncio.create_task(lease.lost())
    await store.put("k", b"", lease=lease.id)
    store.expire(lease.id)
    await waiting
    assert not lease.valid
    assert await store.get("k") is None


async def test_a_lease_revoked_during_an_outage_expires_later() -> None:
    store = MemoryStore()
    lease = await store.lease(10)
    await store.put("k", b"", lease=lease.id)
    store.outage()
    await lease.revoke()
    assert not lease.valid
    store.heal()
    assert await store.get("k") is not None
    store.advance(10)
    assert await store.get("k") is None


@pytest.mark.parametrize("applied", [True, False])
async def test_a_write_can_be_unknown(applied: bool) -> None:
    store = MemoryStore()
    store.fail_next_write(applied=applied)
    with pytest.raises(StoreUnknown):
        await store.put("k", b"")
    assert (await store.get("k") is not None) is applied
    await store.put("k", b"")  # only the next one


@pytest.mark.parametrize("revision", [0, 2, 5])
async def test_only_what_has_happened_can_be_compacted_and_only_once(revision: int) -> None:
    store = MemoryStore()
    for _ in range(3):
        await store.put("k", b"")
    store.compact(2)
    with pytest.raises(StoreError, match="expected 3 to 4"):
        store.compact(revision)
    store.compact()
    assert store.revision == 4
