"""A lease of etcd, kept alive by our own task.

The helper of ``etcd3aio`` says that a lease is alive when its keepalives fail. This one counts from the moment before
a keepalive was sent: the server starts to count later, so that the lease never lasts longer for us than for the server.

All keepalives go over one stream for as long as its member answers: opening one costs several times as much as a
keepalive, and they are most of what a node that is at rest asks of etcd.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator

from tlaunch.launcher.store.cluster import Member
from tlaunch.launcher.store.outcomes import Outcome, brief, outcome
from tlaunch.launcher.store.protocol import LeaseLost, StoreError
from tlaunch.launcher.store.rpc import Message, RpcError, pb
from tlaunch.launcher.store.session import ATTEMPT, NotDone, Session

_PAUSE = 0.1
_REVOKE_WITHIN = 2.0


def shares(chance: float) -> Iterator[float]:
    """Return how much of a third of its time a lease waits before each keepalive: never more, so it stays as safe.

    Many nodes start together, and should not renew together for ever. It is the second keepalive that comes early, by
    up to half, as ``chance`` (from 0 to 1) has it: while they start, nodes have other things to ask for.
    """
    return itertools.chain((1.0, (1.0 + chance) / 2), itertools.repeat(1.0))


class EtcdLease:
    """See the protocol's ``Lease``. Made by ``EtcdStore.lease``; keepalives are a third of the ttl apart, or less."""

    def __init__(self, session: Session, granted: Message, asked: float) -> None:
        """Start to keep alive the lease that ``granted`` answers to a request sent at ``asked`` (monotonic)."""
        self._session = session
        self._id: int = granted.ID
        self._ttl = float(granted.TTL)
        self._expires = asked + self._ttl
        self._lost = asyncio.Event()
        self._revoked = False
        self._stream: _Stream | None = None
        self._task = asyncio.create_task(self._keep(), name=f"lease {self._id:x}")

    @property
    def id(self) -> int:
        return self._id

    @property
    def ttl(self) -> float:
        return self._ttl

    @property
    def valid(self) -> bool:
        return not self._revoked and not self._lost.is_set() and time.monotonic() < self._expires

    @property
    def running(self) -> bool:
        """Whether the lease is still being renewed."""
        return not self._task.done()

    async def lost(self) -> None:
        if self._revoked:
            await asyncio.Event().wait()
        await self._lost.wait()

    async def revoke(self) -> None:
        self._revoked = True
        await self.stop()
        try:
            await self._session.call(
                lambda m: m.leases.LeaseRevoke,
                pb.LeaseRevokeRequest(ID=self._id),
                what="end of a lease",
                timeout=_REVOKE_WITHIN,
                rounds=1,  # where nobody listens, waiting for somebody would only keep us from ending
            )
        except StoreError:
            # Gone already, or out of reach: then the server ends it itself when its time is up.
            return

    async def stop(self) -> None:
        """Stop renewing; the server will expire the lease."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        try:
            async with asyncio.timeout(None) as validity:
                for share in shares(random.random()):  # noqa: S311  not a secret
                    left = self._expires - time.monotonic()
                    validity.reschedule(asyncio.get_running_loop().time() + left)
                    await asyncio.sleep(share * (left - self._ttl * 2 / 3))
                    await self._renew()
        except (TimeoutError, LeaseLost):
            self._lost.set()
        finally:
            self._hang_up()

    async def _renew(self) -> None:
        """Ask one member after the other until one has renewed the lease. The caller sets the deadline."""
        patience = min(ATTEMPT, self._ttl / 6)
        for attempt in itertools.count(1):
            member = self._session.cluster.first
            asked = time.monotonic()
            try:
                ttl = await self._ask(member, asked, member.patience(patience))
            except NotDone:
                self._session.cluster.demote(member)
                if attempt % len(self._session.cluster) == 0:
                    await asyncio.sleep(_PAUSE)
                    patience *= 2
                continue
            if ttl <= 0:
                raise LeaseLost(f"lease {self._id:x} does not exist any more")
            self._expires = asked + ttl
            return

    async def _log_in(self, member: Member, stale: str | None, patience: float) -> None:
        try:
            await self._session.log_in(member, stale, patience)
        except StoreError as error:
            # Another member may know better, and until the lease has run out nothing is lost.
            raise NotDone(str(error)) from error

    async def _ask(self, member: Member, asked: float, patience: float) -> int:
        """Send one keepalive, and return the seconds that the lease has from now on."""
        stream = self._stream
        if stream is None or stream.member is not member or stream.call.done():
            self._hang_up()
            stream = self._stream = _Stream(member, self._session)
        try:
            async with asyncio.timeout(patience):
                response = await stream.ask(self._id)
        except TimeoutError as error:
            self._hang_up()
            raise NotDone("no answer") from error
        except (RpcError, asyncio.InvalidStateError) as error:
            self._hang_up()
            if isinstance(error, RpcError) and outcome(error) is Outcome.STALE_TOKEN:
                await self._log_in(member, stream.token, patience)
            raise NotDone(brief(error) if isinstance(error, RpcError) else "the stream has ended") from error
        if not isinstance(response, pb.LeaseKeepAliveResponse):
            self._hang_up()
            raise NotDone("the member ended the stream")
        member.answered(asked)
        return int(response.TTL)

    def _hang_up(self) -> None:
        """End the stream, if there is one: an answer that is late must not be taken for that to a later question."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.call.cancel()


class _Stream:
    """Keepalives to one member. ``token`` is the one that it began with."""

    def __init__(self, member: Member, session: Session) -> None:
        self.member = member
        self.token = session.token
        self.call = member.leases.LeaseKeepAlive(metadata=session.metadata)

    async def ask(self, lease: int) -> Message:
        """Send one keepalive and wait for its answer. Whoever interrupts this hangs up."""
        await self.call.write(pb.LeaseKeepAliveRequest(ID=lease))
        return await self.call.read()
