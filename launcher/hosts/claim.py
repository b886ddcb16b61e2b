"""A job's id: taken by one launcher at a time, and everything below it in the store removed in the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import NoReturn

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Launcher
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.hosts.registry import JobRunning
from tlaunch.launcher.store.protocol import Compare, Get, Lease, Put, Store, StoreError


@contextlib.asynccontextmanager
async def claim(store: Store, keys: Keys, spec: JobSpec, timing: Timing) -> AsyncIterator[None]:
    """Hold the job's id and write its spec. What an earlier job of this id has left in the store is removed first.

    Raises:
        JobRunning: another launcher holds the id.
    """
    launcher = encode(Launcher(socket.gethostname(), os.getpid()))
    lease = await store.lease(timing.lease)
    result = await store.txn(
        [Compare(keys.launcher, create_revision=0)], [Put(keys.launcher, launcher, lease.id)], [Get(keys.launcher)]
    )
    if not result.succeeded:
        await lease.revoke()
        holder = [decode(Launcher, kv.value, keys.launcher) for kv in result.reads[0]]
        where = f" (pid {holder[0].pid} on {holder[0].host})" if holder else ""
        raise JobRunning(f"job {keys.job!r} is already running{where}; choose another --job-id")
    await _clear(store, keys)
    await store.put(keys.spec, encode(spec))
    holding = asyncio.create_task(_hold(store, keys, launcher, lease, timing))
    try:
        yield
    finally:
        holding.cancel()
        await asyncio.wait([holding])
        with contextlib.suppress(StoreError):  # then the lease frees the id, and the next job of this id clears up
            await _clear(store, keys)
            await store.delete(keys.launcher)
        await lease.revoke()


async def _clear(store: Store, keys: Keys) -> None:
    """Remove all keys of the job but the launcher's own."""
    for kv in (await store.list(keys.root)).items:
        if kv.key != keys.launcher:
            await store.delete(kv.key)


async def _hold(store: Store, keys: Keys, launcher: bytes, lease: Lease, timing: Timing) -> NoReturn:
    """Take the id again whenever the store was out of reach for longer than a lease."""
    while True:
        await lease.lost()
        while not lease.valid:
            try:
                lease = await store.lease(timing.lease)
                await store.put(keys.launcher, launcher, lease=lease.id)
            except StoreError:
                await asyncio.sleep(timing.retry)
