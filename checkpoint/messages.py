"""What trainers and their saver say to each other: small JSON messages on a local socket, some with a descriptor."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Mapping
from typing import TypeAlias

from tlaunch.checkpoint.errors import CheckpointError
from tlaunch.checkpoint.tree import Node, parse
from tlaunch.checkpoint.values import Json

Message: TypeAlias = Mapping[str, Json]

LONGEST = 64 << 10
"""Bytes of one message. What is longer, such as the layout of a shard, goes through the arena."""


def send(sock: socket.socket, message: Message, fd: int | None = None) -> None:
    """Send one message, with a descriptor or without. Does not wait for who does not read any more.

    Raises:
        OSError: the other side is gone, or has not read hundreds of messages.
    """
    data = json.dumps(message).encode()
    if len(data) > LONGEST:
        data = json.dumps({**message, "error": str(message.get("error"))[:4000]}).encode()
    rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def receive(sock: socket.socket) -> tuple[Node, int | None] | None:
    """Return the next message and the descriptor that came with it; ``None`` when the other side is gone.

    Raises:
        CheckpointError: what came is no message.
    """
    try:
        data, ancillary, flags, _ = _next(sock)
    except ConnectionError:
        return None
    fds = [fd for _, kind, rest in ancillary if kind == socket.SCM_RIGHTS for fd in array.array("i", rest)]
    if not data:
        return None
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > 1:
        for fd in fds:
            os.close(fd)
        raise CheckpointError("a message to or from the saver is too long")
    return parse(data, "message"), (fds[0] if fds else None)


def _next(sock: socket.socket) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
    """Receive once. The last orders of a trainer that was killed are heard, though it has not read our answers.

    The kernel reports such a death as an error of its own first, and only once: what was sent before still waits.
    """
    try:
        return sock.recvmsg(LONGEST, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return sock.recvmsg(LONGEST, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
