"""A trainer's connection to the saver of its node."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from tlaunch.checkpoint.arena import Arena
from tlaunch.checkpoint.errors import CheckpointError
from tlaunch.checkpoint.messages import Message, receive, send
from tlaunch.checkpoint.tree import Node

log = logging.getLogger(__name__)

CONNECT = 30.0
"""Seconds within which a saver must have greeted a trainer."""

LIVES = 5
"""How many savers one run may use up. One dies by accident; several, because something is wrong with the node."""

SOCKET = "TLAUNCH_SAVER"
"""Where an agent has a saver ready, or starts one when somebody comes: the path of a socket."""


class SaverHome:
    """The socket at which the saver of this node listens, and the process, which is replaced when it dies."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="tlaunch-saver-")  # only its owner may enter
        self.path = str(Path(self._folder) / "socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen(128)
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None
        self.pid = 0
        """The process that was started last."""

    def start(self) -> None:
        """Start a saver, unless one runs. Those who connect meanwhile wait for it at the socket."""
        if self._keeper is None or not self._keeper.is_alive():
            self._keeper = threading.Thread(target=self._keep, name="checkpoint saver", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        for _ in range(LIVES):
            process = self._spawn()
            self.pid = process.pid
            code = process.wait()
            if code == 0 or self._closing.is_set():
                return  # all trainers have left it
            log.warning("the saver process has ended with %d; another one is started", code)
        log.error("%d saver processes have died: nothing is saved any more", LIVES)
        self._listener.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        fd = self._listener.fileno()
        return subprocess.Popen(
            [sys.executable, "-m", "tlaunch.checkpoint.saver", str(fd), self.path],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # neither Ctrl-C nor the end of the trainers' group reaches it
        )

    def close(self) -> None:
        """Wait for the saver's end, which comes when all trainers have left and everything is written."""
        self._closing.set()
        if self._keeper is not None:
            self._keeper.join()
        self._listener.close()
        with contextlib.suppress(OSError):
            Path(self.path).unlink()
            Path(self._folder).rmdir()


class Link:
    """One connection. ``told`` is called in a thread of its own with each answer, and with ``None`` at the end."""

    def __init__(self, path: str, told: Callable[[Node | None], None]) -> None:
        """Connect.

        Raises:
            CheckpointError: nobody listens there.
        """
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(CONNECT)
        try:
            self._sock.connect(path)
            if receive(self._sock) is None:  # connected is who waits at the socket; the greeting tells that it serves
                raise ConnectionResetError("it ended before it greeted")
        except OSError as error:
            self._sock.close()
            raise CheckpointError(f"the saver at {path} cannot be reached: {error}") from error
        self._sock.settimeout(None)
        self._told = told
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
            while (received := receive(self._sock)) is not None:
                message, fd = received
                if fd is not None:
                    os.close(fd)
                self._told(message)
        except (CheckpointError, OSError):
            pass  # the same as its end
        self.alive = False
        self._told(None)
