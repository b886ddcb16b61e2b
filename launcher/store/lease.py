"""A lease of etcd, kept alive by our own task.

The helper of ``etcd3aio`` says that a lease is alive when its keepalives fail. This one counts from the moment before
a keepalive was sent: the server starts to count later, so that the lease never lasts longer for us than for the server.
"""

from __future__ import annotations

import asyncio
import itertools
import time

from tlaunch.launcher.store.cluster import Member
from tlaunch.launcher.store.outcomes import Outcome, brief, outcome
from tlaunch.launcher.store.protocol import LeaseLost, StoreError
from tlaunch.launcher.store.rpc import Message, RpcError, pb
from tlaunch.launcher.store.session import ATTEMPT, NotDone, Session

_PAUSE = 0.1
_REVOKE_WITHIN = 2.0


class EtcdLease:
    """See the protocol's ``Lease``. Made by ``EtcdStore.lease``; a third of the ttl lies between keepalives."""

    def __init__(self, session: Session, granted: Message, asked: float) -> None:
        """Start to keep alive the lease that ``granted`` answers to a request sent at ``asked`` (monotonic)."""
        self._session = session
        self._id: int = granted.ID
        self._ttl = float(granted.TTL)
        self._expires = asked + self._ttl
        self._lost = asyncio.Event()
        self._revoked = False
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
                while True:
                    left = self._expires - time.monotonic()
                    validity.reschedule(asyncio.get_running_loop().time() + left)
                    await asyncio.sleep(left - self._ttl * 2 / 3)
                    await self._renew()
        except (TimeoutError, LeaseLost):
            self._lost.set()

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
        """Send one keepalive on a stream of its own, and return the seconds that the lease has from now on."""
        session = self._session
        token = session.token
        call = member.leases.LeaseKeepAlive(timeout=patience, metadata=session.metadata)
        try:
            # grpc keeps to its own deadline, except while it waits for a connection to write to.
            async with asyncio.timeout(patience + _PAUSE):
                await call.write(pb.LeaseKeepAliveRequest(ID=self._id))
                response = await call.read()
        except TimeoutError as error:
            raise NotDone("no answer") from error
        except RpcError as error:
            if outcome(error) is Outcome.STALE_TOKEN:
                await self._log_in(member, token, patience)
            raise NotDone(brief(error)) from error
        finally:
            call.cancel()
        if not isinstance(response, pb.LeaseKeepAliveResponse):
            raise NotDone("the member ended the stream")
        member.answered(asked)
        return int(response.TTL)
