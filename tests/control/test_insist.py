"""Writes that go on until they are done, and cannot be undone by their own past."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tlaunch.launcher.control.insist import OwnKey, insist
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.protocol import Compare, Operation, StoreRefused, StoreUnknown, TxnResult

RETRY = 0.001


class LateStore(MemoryStore):
    """Answers the first transaction with *unknown*, and carries it out when ``late`` is called."""

    def __init__(self) -> None:
        super().__init__()
        self._held: tuple[Sequence[Compare], Sequence[Operation], Sequence[Operation]] | None = None
        self._first = True

    async def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        if self._first:
            self._first = False
            self._held = (compare, then, otherwise)
            raise StoreUnknown("the member has stopped")
        return await super().txn(compare, then, otherwise)

    async def late(self) -> None:
        assert self._held is not None
        await super().txn(*self._held)


async def value(store: MemoryStore, key: str) -> bytes:
    kv = await store.get(key)
    assert kv is not None
    return kv.value


async def test_an_old_write_that_is_carried_out_late_does_not_overwrite_a_newer_one() -> None:
    store = LateStore()
    own = OwnKey(store, "/report", RETRY)
    await own.put(b"old")
    await own.put(b"new")
    await store.late()
    assert await value(store, "/report") == b"new"


@pytest.mark.parametrize("applied", [True, False])
async def test_a_write_of_unknown_outcome_is_done_in_the_end(*, applied: bool) -> None:
    store = MemoryStore()
    own = OwnKey(store, "/report", RETRY)
    await own.put(b"first")
    store.fail_next_write(applied=applied)
    await own.put(b"second")
    assert await value(store, "/report") == b"second"
    await own.put(b"third")
    assert await value(store, "/report") == b"third"


async def test_what_an_agent_of_our_name_wrote_before_us_is_overwritten() -> None:
    store = MemoryStore()
    await store.put("/report", b"of another incarnation")
    await OwnKey(store, "/report", RETRY).put(b"ours")
    assert await value(store, "/report") == b"ours"


async def test_an_outage_is_waited_out() -> None:
    store = MemoryStore()
    store.outage()
    writing = asyncio.create_task(OwnKey(store, "/report", RETRY).put(b"ours"))
    await asyncio.sleep(10 * RETRY)
    assert not writing.done()
    store.heal()
    async with asyncio.timeout(5):
        await writing


async def test_a_refusal_is_not() -> None:
    async def refused() -> None:
        await asyncio.sleep(0)
        raise StoreRefused("wrong password")

    with pytest.raises(StoreRefused):
        await insist(refused, RETRY)
