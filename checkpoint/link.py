"""A trainer's connection to the saver of its node."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import socket
import threading
from collections.abc import Callable

from tlaunch.checkpoint.arena import Arena
from tlaunch.checkpoint.errors import CheckpointError
from tlaunch.checkpoint.messages import Message, receive, send
from tlaunch.checkpoint.tree import Node

log = logging.getLogger(__name__)

CONNECT = 30.0
"""Seconds within which a saver must have greeted a trainer."""

SETTLE = 60.0
"""Seconds that a new run waits for what the one before it has captured to be written."""


def settle(path: str, root: str) -> None:
    """Wait until the saver at ``path`` has written what trainers that are gone had captured for ``root``.

    At most ``SETTLE`` seconds; whatever goes wrong is logged, as what comes next does not depend on it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(SETTLE)
        try:
            sock.connect(path)
            for message in (None, {"do": "settle", "root": root}):
                if message is not None:
                    send(sock, message)
                if receive(sock) is None:
                    raise ConnectionResetError("it has ended")
        except OSError as error:
            log.warning("the saver at %s does not tell what it still writes: %s", path, error)


def _greeted(path: str) -> socket.socket:
    """Return a connection to a saver that serves it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(CONNECT)
        sock.connect(path)
        if receive(sock) is None:  # connected is who waits at the socket; the greeting tells that it serves
            raise ConnectionResetError("it ended before it greeted")
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


class Link:
    """One connection. ``told`` is called in a thread of its own with each answer, and with ``None`` at the end.

    ``silent`` is called there when nothing comes, and returns after how many more seconds it shall be called again.
    """

    def __init__(self, path: str, told: Callable[[Node | None], None], silent: Callable[[], float]) -> None:
        """Connect.

        Raises:
            CheckpointError: nobody listens there.
        """
        try:
            self._sock = _greeted(path)
        except OSError as error:
            raise CheckpointError(f"the saver at {path} cannot be reached: {error}") from error
        self._told = told
        self._silent = silent
        self.alive = True
        """Whether the saver still listens, as far as is known."""
        self._thread = threading.Thread(target=self._listen, name="checkpoint answers", daemon=True)
        self._thread.start()

    def say(self, message: Message) -> None:
        """Send a message.

        Raises:
            CheckpointError: the saver is gone.
        """
        self._send(message, None)

    def give(self, index: int, arena: Arena) -> None:
        """Share an arena with the saver, which knows it by ``index`` from now on.

        Raises:
            CheckpointError: the saver is gone.
        """
        self._send({"do": "arena", "index": index, "size": arena.size}, arena.fd)

    def _send(self, message: Message, fd: int | None) -> None:
        try:
            send(self._sock, message, fd)
        except OSError as error:
            raise CheckpointError(f"the saver process is gone: {error}") from error

    def close(self) -> None:
        """Leave."""
        with contextlib.suppress(OSError):
            send(self._sock, {"do": "leave"})
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _listen(self) -> None:
        try:
            while (received := self._next()) is not None:
                message, fd = received
                if fd is not None:
                    os.close(fd)
                self._told(message)
        except (CheckpointError, OSError):
            pass  # the same as its end
        self.alive = False
        self._told(None)

    def _next(self) -> tuple[Node, int | None] | None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while not poll.poll(math.ceil(self._silent() * 1000)):
            pass
        return receive(self._sock)
