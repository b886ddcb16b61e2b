"""The store protocol: the few operations of etcd v3 that tlaunch needs, and what each may answer.

Every write has three outcomes. *Done*: the call returns. *Lost the comparison*: ``txn`` returns with ``succeeded``
false. *Unknown*: ``StoreUnknown`` is raised, because the deadline passed or the connection broke after the request was
sent; the write may or may not have happened, and the caller must read before it goes on.

Every call has a deadline (``timeout`` in seconds, the implementation's default when ``None``). Keys are text, values
bytes. Revisions are those of etcd: one counter for the whole store that each write raises by one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tlaunch.errors import InputError, TlaunchError


class StoreError(TlaunchError):
    """The store did not do what it was asked to."""


class StoreUnavailable(StoreError):
    """The store could not be reached within the deadline; a write was certainly not done."""


class StoreUnknown(StoreError):
    """Contact was lost while a write was under way: it may have been done, or not, or it may still be done later.

    Later, because a member that was stopped with the request in its socket works it off when it runs again. So read,
    and write again only in a transaction whose comparison fails if the first write has arrived or arrives after all.
    """


class StoreRefused(StoreError, InputError):
    """The store refuses us: wrong user, password, certificate or permission."""


class BadRequest(StoreError):
    """The request can never work, whoever sends it again: an empty key, one key written twice, a value too large."""


class StoreFull(StoreError):
    """The store has no room left for writes. Reads, deletions and leases go on; it may get room again."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as it stands at a revision. ``lease`` is 0 when the key belongs to no lease."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys below a prefix, sorted by key, as they stood at ``revision``."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on one key. Exactly one of the fields other than ``key`` is given.

    ``create_revision=0`` (or ``mod_revision=0``) means that the key does not exist. A comparison by ``value`` is lost
    when the key does not exist.
    """

    key: str
    create_revision: int | None = None
    mod_revision: int | None = None
    value: bytes | None = None

    def __post_init__(self) -> None:
        given = (self.create_revision is not None) + (self.mod_revision is not None) + (self.value is not None)
        if given != 1:
            raise ValueError(f"a comparison of {self.key!r} needs exactly one condition, not {given}")


@dataclass(frozen=True, slots=True)
class Put:
    """Write one key, attached to a lease unless ``lease`` is 0."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key, or every key that starts with ``key`` when ``prefix`` is true."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    """Read one key, or every key that starts with ``key`` when ``prefix`` is true, inside a transaction."""

    key: str
    prefix: bool = False


Operation = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class TxnResult:
    """``succeeded``: which branch ran. ``reads``: for each ``Get`` of that branch, in order, the keys it found."""

    succeeded: bool
    revision: int
    reads: tuple[tuple[KeyValue, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One key written (``kv`` is its new state) or deleted (``kv`` is ``None``) at ``revision``."""

    key: str
    kv: KeyValue | None
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What one message of a watch brings: changes up to ``revision``, oldest first.

    ``changes`` may be empty: then all that is said is that the watch is alive and has seen everything up to
    ``revision``. The first message of every watch is such an empty one. ``contact`` is the ``time.monotonic()`` at
    which the latest request was sent that the store has answered: the store was in reach at that time or later.
    """

    changes: tuple[Change, ...]
    revision: int
    contact: float


class Compacted(StoreError):
    """The watch cannot start at this revision any more: list again and watch from the listed revision."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"the store's history before revision {revision} is gone; list again")
        self.revision = revision


class WatchBroken(StoreError):
    """The watch ended or stayed silent past its deadline: list again and watch from the listed revision."""


class LeaseLost(StoreError):
    """The lease has expired, was revoked, or could not be renewed in time."""


class Lease(Protocol):
    """A lease that a background task keeps alive until ``revoke`` is called or contact is lost for a whole ``ttl``.

    Validity is judged on the local monotonic clock, stamped before each keepalive was sent: ``valid`` never says true
    when the server may already have expired the lease.
    """

    @property
    def id(self) -> int: ...

    @property
    def ttl(self) -> float: ...

    @property
    def valid(self) -> bool: ...

    async def lost(self) -> None:
        """Return when the lease is lost or its validity has run out on our clock. Never returns after ``revoke``."""
        ...

    async def revoke(self) -> None:
        """Stop renewing and delete the lease with its keys. Never raises for a store that cannot be reached."""
        ...


class Store(Protocol):
    """An etcd v3 store.

    All methods may raise ``StoreUnavailable`` or ``StoreRefused``; writes also ``StoreUnknown``, and ``LeaseLost`` when
    they name a lease that the store does not have (then nothing was written), and ``StoreFull``. A request that can
    never work raises ``BadRequest``.
    """

    async def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None: ...

    async def list(self, prefix: str, *, timeout: float | None = None) -> Listing: ...

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        """Write and return the revision."""
        ...

    async def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        """Delete a key, or all below a prefix, and return how many there were."""
        ...

    async def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult: ...

    async def lease(self, ttl: float, *, timeout: float | None = None) -> Lease:
        """Grant a lease of ``ttl`` seconds (the server may round up) and start to keep it alive."""
        ...

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes, None]:
        """Yield every change below ``prefix`` after ``revision``, without a gap and in order.

        Ends only with ``Compacted`` or ``WatchBroken`` (after which the caller lists again), ``StoreRefused``, or when
        the generator is closed. A silent stream is probed with progress requests and ``WatchBroken`` is raised when the
        deadline passes without an answer.
        """
        ...

    async def close(self) -> None:
        """Release every connection and task. Leases are not revoked."""
        ...
