"""JSON messages with file descriptors over a unix stream socket.

A message is a header (length and number of descriptors), then that many bytes of JSON. The descriptors travel as
``SCM_RIGHTS`` with the message's first byte, so they are here when its last byte is.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from tlaunch.errors import TlaunchError

_HEADER = struct.Struct("!IH")
_READ_BYTES = 1 << 16
_INT_BYTES = struct.calcsize("i")
_RIGHTS_BYTES = socket.CMSG_LEN(64 * _INT_BYTES)
# An environment and a command line may be as long as the kernel's limit for exec (2 MiB and more); nothing else is
# large.
_MAX_BYTES = 1 << 26

Message = dict[str, Any]


class ChannelClosed(TlaunchError):
    """The other side is gone."""


class Channel:
    """One end. It blocks if the socket does, else what cannot be sent yet waits until ``flush`` is called again."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._incoming = bytearray()
        self._incoming_fds: deque[int] = deque()
        self._outgoing: deque[tuple[memoryview, list[int]]] = deque()

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be sent: call ``flush`` when the socket becomes writable."""
        return bool(self._outgoing)

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Queue a message with copies of ``fds`` and send what can be sent.

        Never raises for a peer that is gone: ``receive`` says so.
        """
        data = encoded(message, len(fds))
        self._outgoing.append((memoryview(data), [os.dup(fd) for fd in fds]))
        self.flush()

    def flush(self) -> None:
        """Send as much of what waits as the socket takes."""
        while self._outgoing:
            data, fds = self._outgoing[0]
            try:
                sent = self._sock.sendmsg([data], _rights(fds))
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._drop_outgoing()
                return
            _close_all(fds)
            if sent == len(data):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (data[sent:], [])

    def receive(self) -> list[tuple[Message, list[int]]]:
        """Read once and return the messages that are complete now, perhaps none.

        The descriptors are close-on-exec and belong to the caller. Raises ``ChannelClosed`` when the peer is gone.
        """
        try:
            # Not socket.recv_fds: it drops the flags.
            data, rights, _, _ = self._sock.recvmsg(_READ_BYTES, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data, rights = b"", []
        self._incoming += data
        for _, _, fds in rights:
            self._incoming_fds.extend(struct.unpack(f"{len(fds) // _INT_BYTES}i", fds))
        if not data:
            raise ChannelClosed("the other side of the channel is gone")
        return self._complete_messages()

    def receive_one(self) -> tuple[Message, list[int]]:
        """Wait on a blocking socket for one message. Raises ``ChannelClosed`` when the peer is gone."""
        while True:
            for message in self.receive():
                return message

    def _complete_messages(self) -> list[tuple[Message, list[int]]]:
        messages = []
        while len(self._incoming) >= _HEADER.size:
            length, fd_count = _HEADER.unpack_from(self._incoming)
            if length > _MAX_BYTES:
                raise ChannelClosed(f"a message of {length} bytes was announced; at most {_MAX_BYTES} are accepted")
            end = _HEADER.size + length
            if len(self._incoming) < end:
                break
            body = json.loads(self._incoming[_HEADER.size : end])
            del self._incoming[:end]
            messages.append((body, [self._incoming_fds.popleft() for _ in range(fd_count)]))
        return messages

    def _drop_outgoing(self) -> None:
        for _, fds in self._outgoing:
            _close_all(fds)
        self._outgoing.clear()

    def close(self) -> None:
        """Close the socket and every descriptor in transit. Safe to call twice."""
        self._drop_outgoing()
        _close_all(self._incoming_fds)
        self._incoming_fds.clear()
        self._sock.close()


def encoded(message: Mapping[str, Any], fd_count: int = 0) -> bytes:
    """Return a message as it goes over the socket, for a sender that has no ``Channel`` any more."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body), fd_count) + body


def _rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data that carries the descriptors."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []


def _close_all(fds: Sequence[int] | deque[int]) -> None:
    for fd in fds:
        os.close(fd)
