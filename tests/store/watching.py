"""Reading watches until something has come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from tlaunch.launcher.store import Store
from tlaunch.launcher.store.protocol import Change, Changes

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
