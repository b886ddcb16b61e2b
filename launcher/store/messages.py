"""Between the records of our protocol and the messages of etcd's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tlaunch.launcher.store.protocol import Change, Compare, Delete, Get, KeyValue, Operation, Put, TxnResult
from tlaunch.launcher.store.rpc import Message, pb


def encode(key: str) -> bytes:
    """Turn a key into bytes; a foreign key that is not UTF-8 comes back as it was."""
    return key.encode(errors="surrogateescape")


def decode(key: bytes) -> str:
    """Turn the bytes of a key into text."""
    return key.decode(errors="surrogateescape")


def key_range(key: str, *, prefix: bool) -> dict[str, bytes]:
    """Return the fields ``key`` and ``range_end`` that stand for one key or for all below it."""
    start = encode(key)
    if not prefix:
        return {"key": start}
    if not start:
        return {"key": b"\0", "range_end": b"\0"}  # etcd's way to say: all keys
    return {"key": start, "range_end": _after(start)}


def key_value(message: Message) -> KeyValue:
    """Read a ``mvccpb.KeyValue``."""
    return KeyValue(
        key=decode(message.key),
        value=message.value,
        create_revision=message.create_revision,
        mod_revision=message.mod_revision,
        version=message.version,
        lease=message.lease,
    )


def change(event: Message) -> Change:
    """Read a ``mvccpb.Event``."""
    kv = event.kv
    deleted = event.type == event.DELETE
    return Change(decode(kv.key), None if deleted else key_value(kv), kv.mod_revision)


def txn_request(compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> Message:
    """Write a ``TxnRequest``."""
    return pb.TxnRequest(
        compare=[_compare(condition) for condition in compare],
        success=[_operation(operation) for operation in then],
        failure=[_operation(operation) for operation in otherwise],
    )


def txn_result(response: Message) -> TxnResult:
    """Read a ``TxnResponse``."""
    reads = [answer.response_range for answer in response.responses if answer.HasField("response_range")]
    return TxnResult(
        succeeded=response.succeeded,
        revision=response.header.revision,
        reads=tuple(key_values(read.kvs) for read in reads),
    )


def key_values(messages: Iterable[Message]) -> tuple[KeyValue, ...]:
    """Read several, sorted by key as etcd sends them."""
    return tuple(key_value(message) for message in messages)


def _compare(condition: Compare) -> Message:
    key = encode(condition.key)
    if condition.value is not None:
        return pb.Compare(key=key, target=pb.Compare.VALUE, result=pb.Compare.EQUAL, value=condition.value)
    if condition.create_revision is not None:
        revision = condition.create_revision
        return pb.Compare(key=key, target=pb.Compare.CREATE, result=pb.Compare.EQUAL, create_revision=revision)
    return pb.Compare(key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=condition.mod_revision)


def _operation(operation: Operation) -> Message:
    match operation:
        case Put(key, value, lease):
            return pb.RequestOp(request_put=pb.PutRequest(key=encode(key), value=value, lease=lease))
        case Delete(key, prefix):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(**key_range(key, prefix=prefix)))
        case Get(key, prefix):
            return pb.RequestOp(request_range=pb.RangeRequest(**key_range(key, prefix=prefix)))


def _after(prefix: bytes) -> bytes:
    """Return the first key that is greater than every key with this prefix."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
