"""A node's place in the job: a lease, and the registration that hangs on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NoReturn

from tlaunch.errors import InputError, TlaunchError
from tlaunch.launcher.control.insist import insist
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.probe import Verdict, probe
from tlaunch.launcher.control.records import Registration
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import decode, encode
from tlaunch.launcher.store.protocol import Compare, Delete, Get, KeyValue, Lease, LeaseLost, Listing, Put, Store


class NodeTaken(InputError):
    """Another agent has registered under the same name."""


class JobGone(TlaunchError):
    """The job that we take part in does not stand in the store any more."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(
            f"job {keys.job} is gone from etcd: its data was lost, removed or set back while the job ran; "
            "expected etcd to keep it until the job ends"
        )


class Membership:
    """Registers once, and again whenever the lease is lost.

    Losing the lease ends nothing by itself: only a newer plan does, or the loss of the job itself. ``job`` compares the
    job's spec with the one that there was when the node joined. ``head`` is what the registration has read below the
    head's prefix, and when that was asked for.
    """

    def __init__(self, store: Store, keys: Keys, registration: Registration, timing: Timing) -> None:
        self.registration = registration
        self.job: Compare | None = None
        self._store = store
        self._keys = keys
        self._timing = timing
        self._lease: Lease | None = None
        self._joined = asyncio.Event()
        self.head: tuple[Listing, float] | None = None

    async def join(self, *also: Put | Delete) -> int:
        """Take a lease and register, and write or delete other keys of ours in the same step.

        Returns the revision at which that was done, or 0 when we were registered already: then only the registration
        was written. Raises ``NodeTaken`` when somebody else holds the name, and ``JobGone``.
        """
        lease = await self._store.lease(self._timing.lease)
        try:
            revision = await self._register(lease, also)
        except BaseException:
            await lease.revoke()
            raise
        self._lease = lease
        self._joined.set()
        return revision

    async def keep(self, before: Callable[[], Awaitable[None]]) -> NoReturn:
        """Join again, with a new lease, each time the present one is lost; ``before`` that, something has to be done.

        Raises ``NodeTaken`` when somebody else has taken the name meanwhile, and ``JobGone``.
        """
        while True:
            lease = await self.lease()
            await lease.lost()
            self._joined.clear()
            await lease.revoke()
            await before()
            await insist(self.join, self._timing.retry)

    async def lease(self) -> Lease:
        """Wait until the node is registered, and return its lease."""
        await self._joined.wait()
        if self._lease is None:
            raise LeaseLost("the node has left the job")
        return self._lease

    async def renew(self) -> None:
        """Write the registration again: somebody has deleted it while our lease lived on."""
        if self._lease is not None and self._joined.is_set():
            await self._register(self._lease, ())

    async def leave(self) -> None:
        """Give up the registration and everything else that hangs on the lease."""
        self._joined.set()
        if self._lease is not None:
            await self._lease.revoke()
            self._lease = None

    def check(self, spec: Sequence[KeyValue]) -> None:
        """Raise ``JobGone`` unless this is the spec that we joined. ``spec``: what a read of its key has found."""
        found = Compare(self._keys.spec, mod_revision=spec[0].mod_revision if spec else 0)
        self.job = self.job or found
        if found != self.job:
            raise JobGone(self._keys)

    async def _register(self, lease: Lease, also: Iterable[Put | Delete]) -> int:
        node = self.registration.node
        key = self._keys.agent(node.name)
        value = encode(self.registration)
        ours = [Put(key, value, lease.id), Put(self._keys.node(node.name), encode(node)), *also]
        vacant = Compare(key, create_revision=0)
        spec = Get(self._keys.spec)
        compare = [vacant] if self.job is None else [self.job, vacant]
        asked = time.monotonic()
        result = await self._store.txn(compare, [*ours, Get(self._keys.head, prefix=True), spec], [Get(key), spec])
        self.check(result.reads[-1])
        if result.succeeded:
            self.head = Listing(result.reads[0], result.revision), asked
            return result.revision
        for held in result.reads[0]:
            holder = decode(Registration, held.value, key)
            if holder.incarnation == self.registration.incarnation:
                continue
            # An agent that is started again need not wait until the lease of the one that was killed has run out.
            if (await probe(holder, self._timing.probe)).verdict is Verdict.GONE:
                await self._store.txn([Compare(key, mod_revision=held.mod_revision)], [Delete(key)])
                return await self._register(lease, also)
            raise NodeTaken(
                f"node {node.name} of job {self._keys.job} is already registered by pid {holder.pid} on "
                f"{holder.host}: expected each node name once"
            )
        # It is our own, from before the lease was lost, or the answer to the first attempt went astray.
        await self._store.put(key, value, lease=lease.id)
        return 0
