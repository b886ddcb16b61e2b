"""The data behind the in-memory store: keys, revisions, history and leases, without any waiting.

It follows etcd: one revision for each transaction that changes something, deletions included; an expired lease takes
its keys in one revision. ``now`` is whatever its owner sets.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tlaunch.launcher.store.protocol import (
    BadRequest,
    Change,
    Compacted,
    Compare,
    Delete,
    Get,
    KeyValue,
    LeaseLost,
    Listing,
    Operation,
    Put,
    TxnResult,
)


@dataclass(slots=True)
class Grant:
    """A lease as the server sees it. ``expires`` is in seconds of the history's own clock."""

    ttl: float
    expires: float
    keys: set[str] = field(default_factory=set)


class History:
    """One store's state. Every method is a single step that either happens as a whole or raises."""

    def __init__(self) -> None:
        self.now = 0.0
        self.revision = 1  # where a new etcd starts
        self._compacted = 0
        self._keys: dict[str, KeyValue] = {}
        self._changes: list[Change] = []
        self._leases: dict[int, Grant] = {}
        self._next_lease = 1

    # --- reading ---

    def get(self, key: str) -> KeyValue | None:
        """Return the key as it stands now."""
        _check_key(key)
        return self._keys.get(key)

    def listing(self, prefix: str) -> Listing:
        """Return all keys below ``prefix`` as they stand now."""
        return Listing(self._below(prefix), self.revision)

    def since(self, prefix: str, revision: int) -> tuple[Change, ...]:
        """Return what changed below ``prefix`` after ``revision``, oldest first, or raise ``Compacted``."""
        if revision < self._compacted:
            raise Compacted(self._compacted)
        first = bisect.bisect_right(self._changes, revision, key=lambda change: change.revision)
        return tuple(change for change in self._changes[first:] if change.key.startswith(prefix))

    # --- writing ---

    def txn(
        self, compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        """Compare, then run one branch as a single revision."""
        for branch in (then, otherwise):
            _check_branch(branch)
        for condition in compare:
            _check_key(condition.key)
        succeeded = all(self._holds(condition) for condition in compare)
        branch = then if succeeded else otherwise
        for operation in branch:
            if isinstance(operation, Put) and operation.lease and operation.lease not in self._leases:
                raise LeaseLost(f"no lease {operation.lease:x} for key {operation.key!r}")
        reads, changes = self._run(branch)
        return TxnResult(succeeded, self._commit(changes), reads)

    def compact(self, revision: int) -> None:
        """Forget the history before ``revision``."""
        if not self._compacted < revision <= self.revision:
            raise BadRequest(
                f"cannot compact at {revision}: expected {self._compacted + 1} to {self.revision}, the current revision"
            )
        self._compacted = revision
        self._changes = [change for change in self._changes if change.revision > revision]

    # --- leases ---

    def grant(self, ttl: float) -> int:
        """Make a lease and return its id."""
        lease = self._next_lease
        self._next_lease += 1
        self._leases[lease] = Grant(ttl, self.now + ttl)
        return lease

    def renew(self, lease: int) -> bool:
        """Give the lease its whole time again; false when it does not exist any more."""
        grant = self._leases.get(lease)
        if grant is not None:
            grant.expires = self.now + grant.ttl
        return grant is not None

    def revoke(self, lease: int) -> None:
        """Delete a lease and its keys."""
        grant = self._leases.pop(lease, None)
        if grant is not None:
            _, changes = self._run([Delete(key) for key in sorted(grant.keys)])
            self._commit(changes)

    def expire(self) -> None:
        """Revoke the leases whose time is up at ``now``."""
        for lease in [lease for lease, grant in self._leases.items() if grant.expires <= self.now]:
            self.revoke(lease)

    # --- inside ---

    def _below(self, prefix: str) -> tuple[KeyValue, ...]:
        return tuple(self._keys[key] for key in sorted(self._keys) if key.startswith(prefix))

    def _holds(self, condition: Compare) -> bool:
        kv = self._keys.get(condition.key)
        if condition.value is not None:
            return kv is not None and kv.value == condition.value
        if condition.create_revision is not None:
            return (kv.create_revision if kv else 0) == condition.create_revision
        return (kv.mod_revision if kv else 0) == condition.mod_revision

    def _run(self, operations: Iterable[Operation]) -> tuple[tuple[tuple[KeyValue, ...], ...], list[Change]]:
        """Apply the operations as the next revision; the caller commits what changed."""
        reads: list[tuple[KeyValue, ...]] = []
        changes: list[Change] = []
        for operation in operations:
            match operation:
                case Get(key, prefix):
                    found = self._keys.get(key)
                    reads.append(self._below(key) if prefix else (found,) if found else ())
                case Put():
                    changes.append(self._put(operation))
                case Delete(key, prefix):
                    changes += self._delete([kv.key for kv in self._below(key)] if prefix else [key])
        return tuple(reads), changes

    def _put(self, put: Put) -> Change:
        revision = self.revision + 1
        old = self._keys.get(put.key)
        self._detach(old)
        if put.lease:
            self._leases[put.lease].keys.add(put.key)
        if old is None:
            new = KeyValue(put.key, put.value, revision, revision, 1, put.lease)
        else:
            new = replace(old, value=put.value, mod_revision=revision, version=old.version + 1, lease=put.lease)
        self._keys[put.key] = new
        return Change(put.key, new, revision)

    def _delete(self, keys: Iterable[str]) -> list[Change]:
        removed = [self._keys.pop(key) for key in keys if key in self._keys]
        for kv in removed:
            self._detach(kv)
        return [Change(kv.key, None, self.revision + 1) for kv in removed]

    def _detach(self, kv: KeyValue | None) -> None:
        if kv is not None and kv.lease in self._leases:
            self._leases[kv.lease].keys.discard(kv.key)

    def _commit(self, changes: list[Change]) -> int:
        if changes:
            self.revision += 1
            self._changes += changes
        return self.revision


def _check_key(key: str) -> None:
    if not key:
        raise BadRequest("a key must not be empty")


def _check_branch(branch: Sequence[Operation]) -> None:
    """Refuse what etcd refuses: an empty key, and a key written twice, be it by a put or by the deletion around it."""
    written: set[str] = set()
    deletions = [operation for operation in branch if isinstance(operation, Delete)]
    for operation in branch:
        if isinstance(operation, Put) or not operation.prefix:
            _check_key(operation.key)
        if isinstance(operation, Put):
            if operation.key in written or any(_covers(deletion, operation.key) for deletion in deletions):
                raise BadRequest(f"a transaction writes key {operation.key!r} twice; expected once at most")
            written.add(operation.key)


def _covers(deletion: Delete, key: str) -> bool:
    return key.startswith(deletion.key) if deletion.prefix else key == deletion.key
