"""A current copy of everything below some prefixes: list, then watch, and list again whenever the watch ends.

A watch is only a hint. After each break the listing decides, so that keys deleted meanwhile vanish, and the reader
looks at ``items`` as a whole instead of following single changes.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import weakref
from collections.abc import Mapping
from contextlib import aclosing
from types import MappingProxyType, TracebackType
from typing import Self

from tlaunch.launcher.store.protocol import (
    Changes,
    Compacted,
    KeyValue,
    Listing,
    Store,
    StoreUnavailable,
    WatchBroken,
)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.0


class Mirror:
    """Keeps ``items`` equal to what stands below the prefixes. Use it as an async context manager.

    Entering lists once and raises what that raises. Later losses of contact are not errors: the mirror keeps what it
    has, says so by ``in_contact_since``, and tries again until it is closed.

    Args:
        store: where to look.
        prefixes: which keys; no prefix may be the beginning of another.
        gap: contact counts as unbroken while no two proofs of it are further apart than this many seconds.

    """

    def __init__(self, store: Store, *prefixes: str, gap: float = 5.0) -> None:
        if not prefixes or any(a.startswith(b) for a, b in itertools.permutations(prefixes, 2)):
            raise ValueError(f"a mirror needs prefixes that do not contain each other, not {prefixes}")
        self._copy = _Copy()
        self._first = Reader(self)
        self._parts = [_Part(store, prefix, self._copy, gap) for prefix in prefixes]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def items(self) -> Mapping[str, KeyValue]:
        """What stands below the prefixes: a live view, so copy what has to stay as it is across an ``await``."""
        return self._copy.view

    @property
    def revision(self) -> int:
        """Every change up to this revision is in ``items``."""
        return min(part.revision for part in self._parts)

    @property
    def contact(self) -> float:
        """``time.monotonic()`` of the last proof of contact: when the request was sent that has been answered."""
        return min(part.contact for part in self._parts)

    @property
    def in_contact_since(self) -> float | None:
        """``time.monotonic()`` since when contact has been unbroken, or ``None`` while it is lost."""
        starts = [part.in_contact_since for part in self._parts]
        known = [start for start in starts if start is not None]
        return max(known) if len(known) == len(starts) else None

    def begin(self, listing: Listing, asked: float) -> None:
        """Take over what a request has read that was sent at ``asked`` (monotonic): entering need not list then."""
        (part,) = self._parts
        part.take(listing, asked)

    async def changed(self, timeout: float | None) -> bool:
        """Return true as soon as anything may have changed since the last call, false after ``timeout`` seconds.

        A loss of contact counts as a change, and so does its return. One task may wait at a time; others that want to
        know have a :meth:`reader` each.

        Raises:
            StoreRefused: the store does not let us in any more; the mirror has ended.

        """
        return await self._first.changed(timeout)

    def reader(self, *only: str, unless: tuple[str, ...] = ()) -> Reader:
        """Return a reader of its own for another task, to which everything that happens from now on is news.

        ``only``: what changes below these prefixes, everything if there are none; but not below the prefixes
        ``unless``. Contact that is lost or returns is always news.
        """
        return Reader(self, only or ("",), unless)

    def add(self, reader: Reader) -> None:
        """Tell ``reader`` of each change, for as long as anybody else holds it."""
        self._copy.readers.add(reader)

    def check(self) -> None:
        """Raise ``StoreRefused`` when the mirror has ended."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(part.list() for part in self._parts if not part.revision))
        for part in self._parts:
            task = asyncio.create_task(part.follow(), name=f"mirror of {part.prefix}")
            task.add_done_callback(lambda _: self._copy.tell())
            self._tasks.append(task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        # What a task may have failed with was for changed() to raise.
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Reader:
    """One task's way to read a mirror: each has its own idea of what is news."""

    def __init__(self, mirror: Mirror, only: tuple[str, ...] = ("",), unless: tuple[str, ...] = ()) -> None:
        self._mirror = mirror
        self._only = only
        self._unless = unless
        self._news = asyncio.Event()
        mirror.add(self)

    def tell(self, *keys: str) -> None:
        """Note that these keys have changed, or without any, that there may be news of any kind."""
        if not keys or any(key.startswith(self._only) and not key.startswith(self._unless) for key in keys):
            self._news.set()

    @property
    def items(self) -> Mapping[str, KeyValue]:
        """See :attr:`Mirror.items`."""
        return self._mirror.items

    async def changed(self, timeout: float | None) -> bool:
        """See :meth:`Mirror.changed`."""
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            return False
        self._mirror.check()
        self._news.clear()
        return True


class _Copy:
    """The keys, and the events that tell that they are not what they were."""

    def __init__(self) -> None:
        self._items: dict[str, KeyValue] = {}
        self.view: Mapping[str, KeyValue] = MappingProxyType(self._items)
        self.readers = weakref.WeakSet[Reader]()

    def tell(self, *keys: str) -> None:
        """Tell every reader of these keys, or that there may be news of any kind."""
        for reader in self.readers:
            reader.tell(*keys)

    def replace(self, prefix: str, listing: Listing) -> None:
        """Make the copy below ``prefix`` equal to the listing."""
        fresh = {kv.key: kv for kv in listing.items}
        stale = {key: kv for key, kv in self._items.items() if key.startswith(prefix)}
        if fresh != stale:
            for key in stale.keys() - fresh.keys():
                del self._items[key]
            self._items.update(fresh)
            self.tell()

    def apply(self, changes: Changes) -> None:
        """Bring the copy forward by what a watch has brought."""
        for change in changes.changes:
            if change.kv is None:
                self._items.pop(change.key, None)
            else:
                self._items[change.key] = change.kv
        if changes.changes:
            self.tell(*(change.key for change in changes.changes))


class _Part:
    """Follows one prefix."""

    def __init__(self, store: Store, prefix: str, copy: _Copy, gap: float) -> None:
        self._store = store
        self._copy = copy
        self._gap = gap
        self._since = 0.0
        self.prefix = prefix
        self.revision = 0
        self.contact = float("-inf")

    @property
    def in_contact_since(self) -> float | None:
        return self._since if time.monotonic() - self.contact <= self._gap else None

    async def list(self) -> None:
        """Take the listing over, or raise what it raises."""
        asked = time.monotonic()
        self.take(await self._store.list(self.prefix), asked)

    def take(self, listing: Listing, asked: float) -> None:
        """Take over a listing that was asked for at ``asked``."""
        self._copy.replace(self.prefix, listing)
        self.revision = listing.revision
        self._prove(asked)

    async def follow(self) -> None:
        """Watch, and list again after each break, until cancelled or refused."""
        while True:
            try:
                async with aclosing(self._store.watch(self.prefix, self.revision)) as stream:
                    async for changes in stream:
                        self._copy.apply(changes)
                        self.revision = changes.revision
                        self._prove(changes.contact)
            except (Compacted, WatchBroken, StoreUnavailable):
                self._copy.tell()
            await self._list_until_done()

    async def _list_until_done(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self.list()
            except StoreUnavailable:
                self._copy.tell()
            # The jitter keeps a thousand agents from coming back in the same moment.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  not a secret
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _prove(self, asked: float) -> None:
        """Note that a request sent at ``asked`` has been answered."""
        now = time.monotonic()
        if now - self.contact > self._gap:
            # Counted from the answer: whoever waits for a while after contact has returned must not wait less.
            self._since = now
            self._copy.tell()
        self.contact = max(self.contact, asked)
