"""Readers and writers that go on while members of the cluster fail."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from tlaunch.launcher.store import EtcdStore
from tlaunch.launcher.store.protocol import Change, Compare, Put, StoreUnknown, WatchBroken


class Follower:
    """Watches like any reader: where a watch breaks, the next goes on from what was seen last."""

    def __init__(self, store: EtcdStore, prefix: str, revision: int) -> None:
        self.changes: list[Change] = []
        self.breaks = 0
        self._store = store
        self._prefix = prefix
        self._revision = revision
        self._news = asyncio.Condition()
        self._live = asyncio.Event()
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            try:
                async with aclosing(self._store.watch(self._prefix, self._revision)) as stream:
                    async for message in stream:
                        self._live.set()
                        self._revision = message.revision
                        async with self._news:
                            self.changes += message.changes
                            self._news.notify_all()
            except WatchBroken:
                self.breaks += 1

    async def live(self) -> None:
        """Wait until the first watch has begun."""
        await self._live.wait()

    async def seen(self, key: str, within: float) -> float:
        """Wait for a change of this key and return how long that took."""
        began = time.monotonic()
        async with asyncio.timeout(within), self._news:
            await self._news.wait_for(lambda: any(change.key == key for change in self.changes))
        return time.monotonic() - began

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def following(store: EtcdStore, prefix: str) -> AsyncIterator[Follower]:
    follower = Follower(store, prefix, (await store.list(prefix)).revision)
    try:
        await follower.live()
        yield follower
    finally:
        await follower.close()


class Writer:
    """Writes numbered keys without pause; what is unknown it reads, and writes again if it is not there."""

    def __init__(self, store: EtcdStore, prefix: str) -> None:
        self.written: list[str] = []
        self.unknown = 0
        self.longest = 0.0
        self._progress = asyncio.Condition()
        self._store = store
        self._prefix = prefix
        self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        for number in range(1_000_000):
            key = f"{self._prefix}{number:06}"
            began = time.monotonic()
            while not await self._put_once(key):
                pass
            self.longest = max(self.longest, time.monotonic() - began)
            async with self._progress:
                self.written.append(key)
                self._progress.notify_all()

    async def _put_once(self, key: str) -> bool:
        try:
            # The comparison makes it harmless if an unknown first write arrives after all.
            await self._store.txn([Compare(key, create_revision=0)], [Put(key, b"")])
        except StoreUnknown:
            self.unknown += 1
            return await self._store.get(key) is not None
        return True

    async def more(self, count: int, within: float) -> None:
        """Wait until so many more keys are written."""
        wanted = len(self.written) + count
        async with asyncio.timeout(within), self._progress:
            await self._progress.wait_for(lambda: len(self.written) >= wanted)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def writing(store: EtcdStore, prefix: str) -> AsyncIterator[Writer]:
    writer = Writer(store, prefix)
    try:
        yield writer
    finally:
        await writer.close()
