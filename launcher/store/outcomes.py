"""What an error of grpc or etcd means for the request that met it."""

from __future__ import annotations

from enum import Enum, auto

from tlaunch.launcher.store.protocol import BadRequest, LeaseLost, StoreError, StoreFull, StoreRefused
from tlaunch.launcher.store.rpc import RpcError, StatusCode


class Outcome(Enum):
    """What became of a request, as far as its error tells."""

    NOT_DONE = auto()  # certainly not: it was never sent, or turned away at the door
    UNKNOWN = auto()
    STALE_TOKEN = auto()  # not done: log in again
    FINAL = auto()  # not done, and asking again would not help


class NotPermitted(StoreRefused):
    """etcd knows the user, but the user may not do this."""


# The texts are those of etcd's api/v3rpc/rpctypes/error.go, the same from 3.4 to 3.6.
_STALE_TOKEN = {
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    "etcdserver: user name is empty",  # authentication was switched on after we came
}
_NO_SPACE = "mvcc: database space exceeded"
_TURNED_AWAY = {"etcdserver: no leader", "etcdserver: too many requests"}
# grpc's, for a call that found no connection to go out on. If the text changes, the outcome is unknown, which is safe.
_NEVER_SENT = ("failed to connect to all addresses", "connections to all backends failing")

_UNCERTAIN = {
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.CANCELLED,
    StatusCode.UNKNOWN,
    StatusCode.INTERNAL,
    StatusCode.ABORTED,
    StatusCode.DATA_LOSS,
}


def outcome(error: RpcError) -> Outcome:
    """Judge an error by its code and, where etcd uses one code for several things, by its text."""
    details = error.details() or ""
    if details in _STALE_TOKEN or error.code() == StatusCode.UNAUTHENTICATED:
        return Outcome.STALE_TOKEN
    if details in _TURNED_AWAY or details.startswith(_NEVER_SENT):
        return Outcome.NOT_DONE
    return Outcome.UNKNOWN if error.code() in _UNCERTAIN else Outcome.FINAL


def brief(error: RpcError) -> str:
    """Say in a few words what happened: ``Connection refused`` instead of what grpc makes of it."""
    details = " ".join((error.details() or "").split())
    if error.code() == StatusCode.DEADLINE_EXCEEDED:
        return "no answer"
    if details.startswith(_NEVER_SENT):
        return details.rpartition(": ")[2]
    return details.removeprefix("etcdserver: ") or error.code().name


def final_error(error: RpcError, what: str) -> StoreError:
    """Turn an error that no repetition would cure into ours. ``what`` names the request: ``put of '/a'``."""
    details = brief(error)
    if error.code() == StatusCode.PERMISSION_DENIED:
        return NotPermitted(f"etcd refuses the {what}: {details}; expected a user whose role allows it")
    if outcome(error) is Outcome.STALE_TOKEN:
        return StoreRefused(f"etcd refuses the {what}: {details}; expected a user and password that it knows")
    if error.code() == StatusCode.NOT_FOUND and "lease" in details:
        return LeaseLost(f"etcd refuses the {what}: {details}")
    if details == _NO_SPACE:
        return StoreFull(
            f"etcd refuses the {what}: {details}; expected room: compact and defragment it, then disarm its alarm "
            "(etcdctl alarm disarm)"
        )
    return BadRequest(f"etcd refuses the {what}: {details}")
