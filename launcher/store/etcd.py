"""The store on etcd, for clusters whose members may die, stop or be cut off at any time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from tlaunch.launcher.store import tls
from tlaunch.launcher.store.cluster import Cluster
from tlaunch.launcher.store.endpoints import Endpoints
from tlaunch.launcher.store.lease import EtcdLease
from tlaunch.launcher.store.messages import encode, key_range, key_value, key_values, txn_request, txn_result
from tlaunch.launcher.store.outcomes import NotPermitted
from tlaunch.launcher.store.protocol import (
    Changes,
    Compare,
    Get,
    KeyValue,
    Listing,
    Operation,
    StoreError,
    StoreRefused,
    TxnResult,
)
from tlaunch.launcher.store.rpc import Message, pb
from tlaunch.launcher.store.session import Session
from tlaunch.launcher.store.watch import Patience, watch

T = TypeVar("T")

_FIRST_TRY = 0.5


async def connect(
    endpoints: Endpoints, *, timeout: float = 10.0, request: float = 5.0, patience: Patience | None = None
) -> EtcdStore:
    """Connect to a cluster and make sure that it answers and lets us in.

    Args:
        endpoints: where it is and who we are.
        timeout: seconds until there has to be an answer. That is more than a request takes: connections have to be
            made, and nobody knows yet how quick the members are.
        request: the default deadline of each request of the store, in seconds.
        patience: how soon a silent watch is given up.

    Raises:
        InputError: a certificate file cannot be used.
        StoreUnavailable: no member answered in time.
        StoreRefused: wrong user, password or certificate.

    """
    store, _ = await _connect(endpoints, EtcdStore.greet, timeout, request, patience)
    return store


async def connect_and_get(
    endpoints: Endpoints, key: str, *, timeout: float = 10.0, request: float = 5.0, patience: Patience | None = None
) -> tuple[EtcdStore, KeyValue | None]:
    """Connect as ``connect`` does, with a first request that reads a key already.

    Raises what ``connect`` raises, and ``StoreRefused`` when the user may not read the key.
    """

    async def get(store: EtcdStore, timeout: float) -> KeyValue | None:
        return await store.get(key, timeout=timeout)

    return await _connect(endpoints, get, timeout, request, patience)


async def _connect(
    endpoints: Endpoints,
    first: Callable[[EtcdStore, float], Coroutine[Any, Any, T]],
    timeout: float,
    request: float,
    patience: Patience | None,
) -> tuple[EtcdStore, T]:
    """Connect, and return what the first request has answered."""
    deadline = time.monotonic() + timeout
    session = Session(Cluster(endpoints, tls.read(endpoints)))
    store = EtcdStore(session, timeout=request, patience=patience or Patience())
    try:
        await session.cluster.resolve(timeout)
        greeting = asyncio.create_task(first(store, max(_FIRST_TRY, deadline - time.monotonic())))
        try:
            connected: bool | None = None
            while connected is None and not greeting.done():
                await asyncio.wait({greeting}, timeout=_FIRST_TRY)
                connected = session.cluster.first.connected
            # A member that is connected is only busy, and so is one with which a connection is still being made. Where
            # that has failed, nobody is there yet, and it is worth while to wait, or TLS cannot work, and it is not.
            failed = connected is False and not greeting.done()
            if failed and (reason := await tls.why_refused(endpoints, _FIRST_TRY)):
                raise StoreRefused(reason)
            answer = await greeting
        finally:
            greeting.cancel()
            await asyncio.gather(greeting, return_exceptions=True)
    except BaseException:
        await store.close()
        raise
    return store, answer


class EtcdStore:
    """See the protocol's ``Store``. Made by ``connect``; close it in the event loop that it was made in."""

    def __init__(self, session: Session, *, timeout: float, patience: Patience) -> None:
        self._session = session
        self._timeout = timeout
        self._patience = patience
        self._leases: list[EtcdLease] = []

    @property
    def member(self) -> str:
        """``host:port`` of the member that is asked first at the moment."""
        self._session.check_open()
        return self._session.cluster.first.host

    async def member_names(self) -> set[str]:
        """Return the names of the cluster's members."""
        response = await self._session.call(
            lambda m: m.cluster.MemberList,
            pb.MemberListRequest(),
            what="list of members",
            timeout=self._timeout,
        )
        return {member.name for member in response.members}

    async def greet(self, timeout: float) -> None:
        """Make sure that a member with a quorum behind it answers and knows us."""
        try:
            await self._range("first request", pb.RangeRequest(key=b"tlaunch", count_only=True), timeout)
        except NotPermitted:
            # The user may be allowed other keys only. That the cluster answers and knows him is enough.
            return

    async def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        response = await self._range(f"get of {key!r}", pb.RangeRequest(key=encode(key)), timeout)
        return key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str, *, timeout: float | None = None) -> Listing:
        request = pb.RangeRequest(**key_range(prefix, prefix=True))
        response = await self._range(f"list of {prefix!r}", request, timeout)
        return Listing(key_values(response.kvs), response.header.revision)

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        response = await self._session.call(
            lambda m: m.kv.Put,
            pb.PutRequest(key=encode(key), value=value, lease=lease),
            what=f"put of {key!r}",
            timeout=timeout or self._timeout,
            repeatable=False,
        )
        revision: int = response.header.revision
        return revision

    async def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        response = await self._session.call(
            lambda m: m.kv.DeleteRange,
            pb.DeleteRangeRequest(**key_range(key, prefix=prefix)),
            what=f"delete of {key!r}",
            timeout=timeout or self._timeout,
            repeatable=False,
        )
        deleted: int = response.deleted
        return deleted

    async def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        operations = (*then, *otherwise)
        subject = (*compare, *operations)
        response = await self._session.call(
            lambda m: m.kv.Txn,
            txn_request(compare, then, otherwise),
            what=f"transaction on {subject[0].key!r}" if subject else "empty transaction",
            timeout=timeout or self._timeout,
            repeatable=all(isinstance(operation, Get) for operation in operations),
        )
        return txn_result(response)

    async def lease(self, ttl: float, *, timeout: float | None = None) -> EtcdLease:
        asked = time.monotonic()
        response = await self._session.call(
            lambda m: m.leases.LeaseGrant,
            pb.LeaseGrantRequest(TTL=math.ceil(ttl)),
            what="grant of a lease",
            timeout=timeout or self._timeout,
        )
        if response.error:
            raise StoreError(f"etcd refuses a lease of {ttl:g} s: {response.error}")
        self._leases = [lease for lease in self._leases if lease.running]
        lease = EtcdLease(self._session, response, asked)
        self._leases.append(lease)
        return lease

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes, None]:
        return watch(self._session, prefix, revision, self._patience)

    async def close(self) -> None:
        # Forgotten, too: what one was interrupted in holds on to the member that it was asking.
        leases, self._leases = self._leases, []
        await asyncio.gather(*(lease.stop() for lease in leases))
        await self._session.close()

    async def _range(self, what: str, request: Message, timeout: float | None) -> Message:
        return await self._session.call(lambda m: m.kv.Range, request, what=what, timeout=timeout or self._timeout)
