"""A watch of etcd on a stream of our own, which notices when nobody is at the other end any more.

The watch of ``etcd3aio`` resumes when a connection breaks, but a member that was stopped, or whose packets get lost,
breaks nothing: the stream stays silent. grpc's keepalive cannot ask often enough, because etcd ends connections that
ping more than once in five seconds. etcd answers progress requests on the stream itself, so those are our probes.

Whatever else a member answers proves as well that it is there: a node at rest renews its lease, and asks no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from tlaunch.launcher.store.cluster import Member
from tlaunch.launcher.store.messages import change, key_range
from tlaunch.launcher.store.outcomes import Outcome, brief, final_error, outcome
from tlaunch.launcher.store.protocol import Changes, Compacted, StoreRefused, WatchBroken
from tlaunch.launcher.store.rpc import Message, RpcError, pb
from tlaunch.launcher.store.session import NotDone, Session


@dataclass(frozen=True, slots=True)
class Patience:
    """When a watch is probed and when it is given up, in seconds.

    A member that stops is noticed after ``silence`` at most: ``probe`` after the last request of this client that it
    has answered it is asked, and the rest is for its answer. What it says of itself counts for nothing: only an answer
    tells since when it has been in reach. A third of a lease is less than ``probe``, so that in general the keepalives
    of the client are enough. The watch itself is asked after ``alone`` in any case, should it be the only thing that
    has come to a standstill.
    """

    probe: float = 1.5
    silence: float = 3.0
    alone: float = 5.0


class _TokenExpired(Exception):
    """The stream was refused in a way that a new token may cure."""


async def watch(session: Session, prefix: str, revision: int, patience: Patience) -> AsyncGenerator[Changes, None]:
    """See the protocol's ``Store.watch``."""
    for again in (True, False):
        session.check_open()
        member, token = session.cluster.first, session.token
        stream = _Stream(session, member, prefix, revision, patience)
        try:
            while True:
                yield await stream.next()
        except _TokenExpired as error:
            if not again:
                raise StoreRefused(f"etcd at {member.host} refuses a watch of {prefix!r}: {error}") from None
        except WatchBroken:
            session.cluster.demote(member)
            raise
        finally:
            await stream.close()
        await _log_in(session, member, token, patience)


async def _log_in(session: Session, member: Member, stale: str | None, patience: Patience) -> None:
    try:
        await session.log_in(member, stale, patience.silence)
    except NotDone as error:
        session.cluster.demote(member)
        raise WatchBroken(f"etcd at {member.host} did not answer a log-in: {error}") from error


class _Stream:
    """One bidirectional stream with one watch on it."""

    def __init__(self, session: Session, member: Member, prefix: str, revision: int, patience: Patience) -> None:
        self._member = member
        self._prefix = prefix
        self._revision = revision
        self._patience = patience
        self._call = member.watches.Watch(metadata=session.metadata)
        self._reading: asyncio.Task[Message] | None = None
        self._asked: float | None = None  # when the request was sent that is not answered yet
        self._contact = self._answered = float("-inf")  # as of what was told last, and by this watch itself
        self._heard = time.monotonic()
        self._created = False

    async def next(self) -> Changes:
        """Return what comes next, probing while nothing does."""
        if not self._created and self._asked is None:
            await self._ask(pb.WatchRequest(create_request=self._create_request()))
        while True:
            if self._asked is None and (now := time.monotonic()) >= self._due:
                if now < self._answered + self._patience.alone and self._member.proven > self._contact:
                    self._contact = self._member.proven
                    return Changes((), self._revision, self._contact)
                await self._ask(_progress_request())
            message = await self._receive()
            if message is not None and (changes := self._read(message)) is not None:
                return changes

    async def close(self) -> None:
        """End the stream; the server forgets the watch."""
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
            # Whatever it ended with concerns nobody any more.
            await asyncio.gather(self._reading, return_exceptions=True)

    @property
    def _due(self) -> float:
        """When to look for a sign of life: sooner where an answer takes long, but not much, or nothing else is done."""
        patience = self._patience
        sooner = min(self._member.pace, patience.probe / 3)
        return min(self._contact + patience.probe - sooner, self._answered + patience.alone)

    def _create_request(self) -> Message:
        # Including the known revision, which is then skipped: older etcd forgets a deletion at exactly the revision of
        # a compaction (etcd issue 19179), so a watch that begins there could miss it.
        start = max(1, self._revision)
        return pb.WatchCreateRequest(**key_range(self._prefix, prefix=True), start_revision=start)

    async def _ask(self, request: Message) -> None:
        self._asked = time.monotonic()
        try:
            async with asyncio.timeout(self._patience.silence):
                await self._call.write(request)
        except (TimeoutError, RpcError, asyncio.InvalidStateError) as error:
            raise self._broken(error) from error

    async def _receive(self) -> Message | None:
        """Wait for a message; ``None`` when it is time to probe. The read goes on: to cancel it would end the call."""
        now = time.monotonic()
        if self._asked is None:
            until = self._due
        else:
            until = max(self._asked, self._heard) + self._patience.silence - self._patience.probe
        reading = self._reading = self._reading or asyncio.ensure_future(self._call.read())
        await asyncio.wait({reading}, timeout=max(0.0, until - now))
        if not reading.done():
            if self._asked is None:
                return None
            raise WatchBroken(f"etcd at {self._member.host} has been silent for {self._patience.silence:g} s")
        self._reading = None
        try:
            message = reading.result()
        except (RpcError, asyncio.CancelledError) as error:
            raise self._broken(error) from error
        if not isinstance(message, pb.WatchResponse):
            raise WatchBroken(f"etcd at {self._member.host} has ended a watch")
        return message

    def _read(self, message: Message) -> Changes | None:
        """Take in one message; ``None`` when it brings nothing that the reader should know."""
        self._heard = time.monotonic()
        if message.canceled:
            raise self._cancelled(message)
        if message.created:
            self._created = True
        if message.events:
            return self._changes(message)
        if self._asked is None:
            return None
        self._contact = self._answered = self._asked
        self._asked = None
        self._member.proven = max(self._member.proven, self._contact)  # no pace: it may have had other things to tell
        # Not the revision that the message names: the changes up to there may be still to come (etcd issue 15220).
        return Changes((), self._revision, self._contact)

    def _changes(self, message: Message) -> Changes | None:
        changes = tuple(change(event) for event in message.events if event.kv.mod_revision > self._revision)
        if self._asked is not None and self._heard - self._asked > self._patience.silence:
            # A server that is busy catching up may leave a probe unanswered: ask again.
            self._asked = None
        if not changes:
            return None
        self._revision = changes[-1].revision
        return Changes(changes, self._revision, self._contact)

    def _cancelled(self, message: Message) -> Exception:
        if message.compact_revision:
            return Compacted(message.compact_revision)
        reason = message.cancel_reason.rpartition("etcdserver: ")[2] or "no reason given"
        # 3.5 answers a token that has expired as it does a missing permission.
        if not self._created and ("permission denied" in reason or "invalid auth token" in reason):
            return _TokenExpired(reason)
        return WatchBroken(f"etcd at {self._member.host} has ended a watch: {reason}")

    def _broken(self, error: BaseException) -> Exception:
        if isinstance(error, RpcError):
            match outcome(error):
                case Outcome.STALE_TOKEN:
                    return _TokenExpired(brief(error))
                case Outcome.FINAL:
                    return final_error(error, f"watch of {self._prefix!r}")
                case _:
                    return WatchBroken(f"the watch at etcd {self._member.host} broke: {brief(error)}")
        return WatchBroken(f"the watch at etcd {self._member.host} broke: no answer")


def _progress_request() -> Message:
    request = pb.WatchRequest()
    request.progress_request.SetInParent()
    return request
