"""A store in memory with the semantics of etcd, for tests and simulations.

Several clients can share one memory, as several processes share one etcd: ``store.client()``. Time stands still until
``advance`` moves it; then the leases of clients in contact are renewed, as background tasks would do, and the others
expire. Faults are hooks: ``outage``, ``heal``, ``compact``, ``expire``, ``fail_next_write``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tlaunch.launcher.store.history import History
from tlaunch.launcher.store.protocol import (
    Change,
    Changes,
    Compare,
    Delete,
    KeyValue,
    Listing,
    Operation,
    Put,
    StoreUnavailable,
    StoreUnknown,
    TxnResult,
    WatchBroken,
)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Held:
    """A lease as its holder sees it. ``renewed`` is in seconds of the memory's clock."""

    id: int
    ttl: float
    renewed: float
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    revoked: bool = False


@dataclass(slots=True, eq=False)
class _Client:
    """One client's connection: whether it works, and the leases that it renews."""

    down: bool = False
    closed: bool = False
    leases: list[_Held] = field(default_factory=list)
    next_write: bool | None = None


@dataclass(slots=True, eq=False)
class _Watcher:
    """A watch: what it has seen, and what has happened since that it has not passed on yet."""

    client: _Client
    prefix: str
    revision: int
    broken: bool = False
    pending: list[Change] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> tuple[Change, ...]:
        """Return the pending changes and forget them."""
        changes = tuple(self.pending)
        self.pending.clear()
        self.news.clear()
        return changes


class _Shared:
    """What the clients of one memory have in common."""

    def __init__(self) -> None:
        self.history = History()
        self.down = False
        self.clients: list[_Client] = []
        self.watchers: set[_Watcher] = set()

    def out_of_reach(self, client: _Client) -> str | None:
        """Say why a client cannot reach the store."""
        if client.closed:
            return "this client of the store is closed"
        return "the store is out of reach" if client.down or self.down else None

    def renew(self) -> None:
        """Do what the keepalive tasks of all clients would have done by now."""
        now = self.history.now
        for client in self.clients:
            reachable = self.out_of_reach(client) is None
            for lease in client.leases:
                if reachable and self.history.renew(lease.id):
                    lease.renewed = now
                elif reachable or now >= lease.renewed + lease.ttl:
                    lease.lost.set()
            client.leases = [lease for lease in client.leases if not lease.lost.is_set()]

    def wake(self) -> None:
        """Hand the watches what has happened, at once as etcd does, so that no compaction can take it away."""
        for watcher in self.watchers:
            watcher.pending += self.history.since(watcher.prefix, watcher.revision)
            watcher.revision = self.history.revision
            watcher.news.set()

    def break_watches(self) -> None:
        """End the watches of those who are out of reach, for good, as a broken connection does."""
        for watcher in self.watchers:
            if self.out_of_reach(watcher.client):
                watcher.broken = True
                watcher.news.set()


class MemoryLease:
    """A lease that its client renews whenever time moves, as long as the client is in contact."""

    def __init__(self, shared: _Shared, client: _Client, held: _Held) -> None:
        self._shared = shared
        self._client = client
        self._held = held

    @property
    def id(self) -> int:
        return self._held.id

    @property
    def ttl(self) -> float:
        return self._held.ttl

    @property
    def valid(self) -> bool:
        return not self._held.revoked and not self._held.lost.is_set()

    async def lost(self) -> None:
        if self._held.revoked:
            await asyncio.Event().wait()
        await self._held.lost.wait()

    async def revoke(self) -> None:
        await asyncio.sleep(0)
        self._held.revoked = True
        self._client.leases = [other for other in self._client.leases if other is not self._held]
        if self._shared.out_of_reach(self._client) is None:
            self._shared.history.revoke(self.id)
            self._shared.wake()


class MemoryStore:
    """One client of a memory; a new memory unless it comes from another's ``client()``."""

    def __init__(self, *, probe: float = 1.0, _shared: _Shared | None = None) -> None:
        """Make a new memory. ``probe`` is after how many seconds of silence a watch says that it is alive."""
        self._probe = probe
        self._shared = _shared or _Shared()
        self._client = _Client()
        self._shared.clients.append(self._client)

    # --- hooks for tests ---

    def client(self) -> MemoryStore:
        """Return another client of the same memory, with its own connection and leases."""
        return MemoryStore(probe=self._probe, _shared=self._shared)

    @property
    def now(self) -> float:
        """Seconds on the memory's own clock, which only ``advance`` moves."""
        return self._shared.history.now

    @property
    def revision(self) -> int:
        """The current revision."""
        return self._shared.history.revision

    def advance(self, seconds: float) -> None:
        """Let time pass for every client: renew the leases of those in contact, expire the others."""
        self._shared.history.now += seconds
        self._shared.renew()
        self._shared.history.expire()
        self._shared.wake()

    def expire(self, lease: int) -> None:
        """Expire a lease at the server, as if its holder had been stopped for too long."""
        self._shared.history.revoke(lease)
        self._shared.renew()
        self._shared.wake()

    def compact(self, revision: int | None = None) -> None:
        """Forget the history before ``revision``, the current one by default."""
        self._shared.history.compact(self.revision if revision is None else revision)

    def outage(self, *, only_me: bool = False) -> None:
        """Cut the store off from every client, or only this client from the store. Watches break."""
        if only_me:
            self._client.down = True
        else:
            self._shared.down = True
        self._shared.break_watches()

    def heal(self) -> None:
        """End the outage for every client."""
        self._shared.down = False
        for client in self._shared.clients:
            client.down = False
        self._shared.renew()

    def fail_next_write(self, *, applied: bool) -> None:
        """Let this client's next write raise ``StoreUnknown``, and have it happen or not."""
        self._client.next_write = applied

    # --- the store ---

    async def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        await self._contact()
        return self._shared.history.get(key)

    async def list(self, prefix: str, *, timeout: float | None = None) -> Listing:
        await self._contact()
        return self._shared.history.listing(prefix)

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        return await self._write(lambda: self._shared.history.txn((), [Put(key, value, lease)]).revision)

    async def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        def run() -> int:
            history = self._shared.history
            count = len(history.listing(key).items) if prefix else int(history.get(key) is not None)
            history.txn((), [Delete(key, prefix)])
            return count

        return await self._write(run)

    async def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        return await self._write(lambda: self._shared.history.txn(compare, then, otherwise))

    async def lease(self, ttl: float, *, timeout: float | None = None) -> MemoryLease:
        await self._contact()
        held = _Held(self._shared.history.grant(ttl), ttl, self.now)
        self._client.leases.append(held)
        return MemoryLease(self._shared, self._client, held)

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes, None]:
        history = self._shared.history
        await self._contact()
        watcher = _Watcher(self._client, prefix, history.revision, pending=list(history.since(prefix, revision)))
        self._shared.watchers.add(watcher)
        try:
            yield Changes((), revision, time.monotonic())
            while not watcher.broken:
                changes = watcher.take()
                if changes:
                    revision = changes[-1].revision
                    yield Changes(changes, revision, time.monotonic())
                elif not await _set_within(watcher.news, self._probe):
                    yield Changes((), revision, time.monotonic())
            raise WatchBroken("contact with the store was lost")
        finally:
            self._shared.watchers.discard(watcher)

    async def close(self) -> None:
        self._client.closed = True
        self._shared.break_watches()

    # --- inside ---

    async def _contact(self) -> None:
        # A real store always lets others run in between.
        await asyncio.sleep(0)
        if reason := self._shared.out_of_reach(self._client):
            raise StoreUnavailable(reason)

    async def _write(self, run: Callable[[], T]) -> T:
        await self._contact()
        applied, self._client.next_write = self._client.next_write, None
        if applied is None:
            result = run()
            self._shared.wake()
            return result
        if applied:
            run()
            self._shared.wake()
        raise StoreUnknown("contact with the store was lost during a write")


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):  # wait_for swallows a cancellation that comes with the event (Python 3.11)
            await event.wait()
    except TimeoutError:
        return False
    return True
