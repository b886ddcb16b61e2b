"""How long a node waits for a store that does not come back."""

from __future__ import annotations

import asyncio

import pytest

from tlaunch.launcher.control import outage
from tlaunch.launcher.control.outage import until_hopeless
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import StoreUnavailable


async def test_ranks_run_on_in_an_outage_of_any_length_and_nobody_waits_longer_for_it_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outage, "LOOK_AGAIN", 0.01)
    store = MemoryStore(probe=0.02)
    looks = 0

    def busy() -> bool:
        nonlocal looks
        looks += 1
        return looks < 5

    async with asyncio.timeout(10), Mirror(store, "/job/") as mirror:
        waiting = asyncio.create_task(until_hopeless(mirror, busy, 0.2))
        done, _ = await asyncio.wait({waiting}, timeout=0.4)
        assert (done, looks) == (set(), 0), "the store is there"
        store.outage()
        with pytest.raises(StoreUnavailable, match=r"out of reach for 0\.2 s, and no rank runs here any more"):
            await waiting
    assert looks == 5
