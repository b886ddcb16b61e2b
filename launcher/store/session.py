"""Sending one request to whichever member answers, logged in, within one deadline."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tlaunch.launcher.store.cluster import Cluster, Member
from tlaunch.launcher.store.outcomes import Outcome, brief, final_error, outcome
from tlaunch.launcher.store.protocol import StoreRefused, StoreUnavailable, StoreUnknown
from tlaunch.launcher.store.rpc import Message, RpcError, StatusCode, pb

Rpc = Callable[[Member], Any]

# How long one member may think about a request that another could answer; doubled with every round.
ATTEMPT = 1.0
# A write goes only to a member that has answered within this time, so that few writes meet one that has just stopped.
_PROVEN_FOR = 1.0
# How long a write may take before we look whether it still makes sense to wait.
_LOOK_AFTER = 0.5
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 0.5


class NotDone(Exception):
    """This member certainly did not do it, or it does no harm to do it twice: ask the next one."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One request on its way. ``deadline`` is monotonic."""

    rpc: Rpc
    message: Message
    what: str
    deadline: float
    repeatable: bool

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


class Session:
    """What all requests of one store share: the members, the token, whether it is closed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._endpoints = cluster.endpoints
        self._token: str | None = None
        self._logged_in = self._endpoints.user is None
        self._logging_in = asyncio.Lock()
        self._closed = False

    @property
    def token(self) -> str | None:
        """The token that requests carry now."""
        return self._token

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every request carries.

        ``hasleader`` makes a member without a leader turn requests away and end its watches: cut off from the others,
        it would go on answering progress requests with what it last knew.
        """
        return (("hasleader", "true"), *((("token", self._token),) if self._token else ()))

    def check_open(self) -> None:
        """Raise ``StoreUnavailable`` when the store is closed."""
        if self._closed:
            raise StoreUnavailable("this client of the store is closed")

    async def close(self) -> None:
        """Close all channels; requests under way end with ``StoreUnavailable``."""
        self._closed = True
        await self.cluster.close()

    async def call(
        self,
        rpc: Rpc,
        request: Message,
        *,
        what: str,
        timeout: float,
        repeatable: bool = True,
        rounds: int | None = None,
    ) -> Message:
        """Send a request until a member answers, and return the answer.

        Args:
            rpc: picks the method of a member.
            request: the protobuf message.
            what: names the request in errors, for example ``put of '/a'``.
            timeout: seconds for everything together.
            repeatable: whether it does no harm when the request is done twice, or late. One that is not repeatable is
                sent to another member only when it certainly has not been done.
            rounds: how often each member is asked at most; as often as there is time for when it is ``None``.

        Raises:
            StoreUnavailable: no member answered in time; what is not repeatable was certainly not done.
            StoreUnknown: contact was lost after a request that is not repeatable had been sent.
            StoreRefused, LeaseLost, StoreError: the answer is no.

        """
        self.check_open()
        sending = _Request(rpc, request, what, time.monotonic() + timeout, repeatable)
        pause = _FIRST_PAUSE
        reason = "no answer"
        for attempt in itertools.count():
            member = self.cluster.first
            try:
                return await self._send(member, sending, attempt // len(self.cluster))
            except NotDone as error:
                self.check_open()
                reason = str(error)
                self.cluster.demote(member)
            if (attempt + 1) % len(self.cluster) == 0:
                if sending.left <= pause or (attempt + 1) // len(self.cluster) == rounds:
                    break
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                await self.cluster.resolve(sending.left)
        raise StoreUnavailable(
            f"no etcd member of {self._endpoints} answered the {what} within {timeout:.2g} s ({reason}); "
            "expected a running cluster with a leader"
        )

    async def log_in(self, member: Member, stale: str | None, patience: float) -> None:
        """Get a token in place of ``stale``, unless somebody else has done so meanwhile.

        Raises:
            NotDone: this member did not answer.
            StoreRefused: wrong user or password, or none given.

        """
        user, password = self._endpoints.user, self._endpoints.password
        if user is None:
            raise StoreRefused(f"etcd at {member.host} wants a user and password: give --etcd-user")
        async with self._logging_in:
            if self._logged_in and self._token != stale:
                return
            request = pb.AuthenticateRequest(name=user, password=password)
            try:
                self._token = (await self.once(member, lambda m: m.auth.Authenticate, request, patience)).token
            except RpcError as error:
                if outcome(error) is not Outcome.FINAL:
                    raise NotDone(brief(error)) from error
                if error.code() != StatusCode.FAILED_PRECONDITION:
                    raise StoreRefused(
                        f"etcd at {member.host} refuses user {user!r}: {brief(error)}; expected the right password"
                    ) from None
                self._token = None  # the cluster asks nobody for a password
            self._logged_in = True

    async def once(self, member: Member, rpc: Rpc, request: Message, patience: float) -> Message:
        """Send a request to one member and note that it lives if it answers. Raises ``RpcError``."""
        sent = time.monotonic()
        try:
            response = await rpc(member)(request, timeout=patience, metadata=self.metadata)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                # It was not this task that was cancelled, but the call, by close().
                raise StoreUnavailable("this client of the store was closed during a request") from None
            raise
        member.answered(sent)
        member.term = response.header.raft_term
        return response

    async def _send(self, member: Member, sending: _Request, rounds: int) -> Message:
        """Ask one member, with a new token if the old one has expired. Raises as ``call`` does, and ``NotDone``.

        ``rounds`` is how often every member has been asked before.
        """
        patience = sending.left if len(self.cluster) == 1 else min(sending.left, member.patience(ATTEMPT * 2**rounds))
        if not self._logged_in:
            await self.log_in(member, None, patience)
        if not sending.repeatable:
            await self._prove(member, patience)
            if sending.left <= 0:
                raise NotDone("no time left")
        for again in (True, False):
            token = self._token
            try:
                if sending.repeatable:
                    return await self.once(member, sending.rpc, sending.message, patience)
                return await self._write(member, sending)
            except RpcError as error:
                result = outcome(error)
                if result is Outcome.FINAL or (result is Outcome.STALE_TOKEN and not again):
                    raise final_error(error, sending.what) from None
                if result is Outcome.NOT_DONE or (result is Outcome.UNKNOWN and sending.repeatable):
                    raise NotDone(brief(error)) from error
                if result is Outcome.UNKNOWN:
                    self.cluster.demote(member)
                    raise StoreUnknown(f"contact with etcd at {member.host} broke during the {sending.what}") from error
            await self.log_in(member, token, patience)
        raise AssertionError("unreachable")

    async def _write(self, member: Member, sending: _Request) -> Message:
        """Send a write, and give it up as unknown as soon as it has become hopeless to wait for.

        A member forwards writes to the leader, and forgets those that went to a leader that was dead. So while there is
        no answer we ask from time to time whether the member still lives and still follows the same leader.
        """
        term = member.term
        answer = asyncio.ensure_future(self.once(member, sending.rpc, sending.message, sending.left))
        try:
            while not answer.done():
                await asyncio.wait({answer}, timeout=member.patience(_LOOK_AFTER))
                if not answer.done() and not await self._stands(member, term) and not answer.done():
                    self.cluster.demote(member)
                    raise StoreUnknown(f"etcd at {member.host} or its leader was lost during the {sending.what}")
            return answer.result()
        finally:
            if not answer.done():
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)

    async def _stands(self, member: Member, term: int) -> bool:
        """Whether a member answers, and no other leader has been elected since ``term``."""
        try:
            await self.once(member, lambda m: m.maintenance.Status, pb.StatusRequest(), member.patience(ATTEMPT))
        except RpcError as error:
            # Where there is only one to ask, giving up on a machine that is merely busy would gain nothing.
            result = outcome(error)
            return result is not Outcome.NOT_DONE and (result is not Outcome.UNKNOWN or len(self.cluster) == 1)
        return member.term == term

    async def _prove(self, member: Member, patience: float) -> None:
        """Make sure that a member is alive and has a leader, or raise ``NotDone``."""
        if time.monotonic() - member.proven < member.patience(_PROVEN_FOR):
            return
        try:
            await self.once(member, lambda m: m.maintenance.Status, pb.StatusRequest(), patience)
        except RpcError as error:
            # A member that refuses to tell its status is alive.
            if outcome(error) in {Outcome.NOT_DONE, Outcome.UNKNOWN}:
                raise NotDone(brief(error)) from error
