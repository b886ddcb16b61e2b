"""A job's id: taken by one launcher at a time, and everything below it in the store removed in the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Launcher
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.hosts.registry import JobRunning
from tlaunch.launcher.store.protocol import Compare, Delete, Get, Lease, Put, Store, StoreError


@contextlib.asynccontextmanager
async def claim(
    store: Store, keys: Keys, spec: JobSpec, timing: Timing, lost: Callable[[str], None]
) -> AsyncIterator[None]:
    """Hold the job's id and write its spec. What an earlier job of this id has left in the store is removed first.

    ``lost`` is told why when the id has become somebody else's: the store was out of reach for longer than a lease.

    Raises:
        JobRunning: another launcher holds the id.
    """
    claim = _Claim(store, keys, timing, await store.lease(timing.lease))
    if not await claim.take():
        await claim.lease.revoke()
        raise JobRunning(f"job {keys.job!r} is already running{claim.holder}; choose another --job-id")
    await claim.clear()
    await store.put(keys.spec, encode(spec))
    holding = asyncio.create_task(claim.hold(lost))
    try:
        yield
    finally:
        holding.cancel()
        await asyncio.wait([holding])
        with contextlib.suppress(StoreError):  # then the lease frees the id, and the next job of this id clears up
            await claim.clear()
            await claim.lease.revoke()


class _Claim:
    """Our hold on a job's id. Every write is lost when somebody else has it. ``holder``: who, in words."""

    def __init__(self, store: Store, keys: Keys, timing: Timing, lease: Lease) -> None:
        self.lease = lease
        self.holder = ""
        self._store = store
        self._keys = keys
        self._timing = timing
        self._launcher = encode(Launcher(socket.gethostname(), os.getpid()))
        self._leases = {lease.id}  # ours, by which we know our own writes: other hosts may have our name and pid
        self._revision = 0

    async def take(self) -> bool:
        """Write the launcher's key with our lease; false when it is somebody else's."""
        key = self._keys.launcher
        while True:
            compare, put = Compare(key, mod_revision=self._revision), Put(key, self._launcher, self.lease.id)
            result = await self._store.txn([compare], [put], [Get(key)])
            if result.succeeded:
                self._revision = result.revision
                return True
            found = next(iter(result.reads[0]), None)
            if found is not None and found.lease not in self._leases:
                holder = decode(Launcher, found.value, key)
                self.holder = f" (pid {holder.pid} on {holder.host})"
                return False
            self._revision = found.mod_revision if found else 0
            if found is not None and found.lease == self.lease.id:
                return True  # written by an attempt whose answer got lost

    async def hold(self, lost: Callable[[str], None]) -> None:
        """Take the id again whenever the store was out of reach for longer than a lease."""
        while True:
            await self.lease.lost()
            if not await self._take_again():
                return lost(
                    f"another launcher has taken the job id {self._keys.job!r}{self.holder}; etcd was out of reach"
                )

    async def _take_again(self) -> bool:
        while True:
            try:
                if not self.lease.valid:
                    self.lease = await self._store.lease(self._timing.lease)
                    self._leases.add(self.lease.id)
                return await self.take()
            except StoreError:
                await asyncio.sleep(self._timing.retry)

    async def clear(self) -> None:
        """Remove all keys of the job but the launcher's own, a folder at a time, if the id is still ours."""
        root, own = self._keys.root, self._keys.launcher
        items = (await self._store.list(root, timeout=self._timing.request)).items
        tops = {kv.key.removeprefix(root).partition("/")[:2] for kv in items if kv.key != own}
        deletes = [Delete(root + name + slash, prefix=bool(slash)) for name, slash in sorted(tops)]
        await self._store.txn([Compare(own, mod_revision=self._revision)], deletes, timeout=self._timing.request)
