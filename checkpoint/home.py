"""Where the saver of a node listens, how it is started, and how often one that has died is replaced."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

SOCKET = "TLAUNCH_SAVER"
"""The variable that tells ranks where an agent has a saver ready, or starts one when somebody comes: a socket."""

LIVES = 5
"""How many savers may die young, one after the other. One dies by accident; several, because something is wrong."""

YOUNG = 600.0
"""Seconds. When a saver that has lived longer dies, that is an accident, and the count begins anew."""

CLOSING = 60.0
"""Seconds that a saver has to end when all trainers have left and everything is committed or has failed."""

BACKLOG = 1024


class Lives:
    """Counts the savers of a node that have died young."""

    def __init__(self) -> None:
        self._lost = 0
        self._born = 0.0

    def begin(self) -> None:
        """Note that one has been started."""
        self._born = time.monotonic()

    def end(self) -> bool:
        """Note that it has died, and tell whether another one may be started."""
        young = time.monotonic() - self._born < YOUNG
        self._lost = self._lost + 1 if young else 1
        return self._lost < LIVES


def listen(path: str) -> socket.socket:
    """Return a socket that trainers can connect to already; they wait there until a saver accepts them."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def start_saver(
    listener: socket.socket,
    *options: str,
    fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a saver on ``listener``. ``options``: further ones of its command line. ``fds``: what they name.

    It leads a session of its own: neither Ctrl-C nor the end of its starter's group reaches it.
    """
    fd = listener.fileno()
    return subprocess.Popen(
        # -P: a logging.py in the user's working directory must not take the place of the standard library's.
        [sys.executable, "-P", "-m", "tlaunch.checkpoint.saver", f"--listen-fd={fd}", *options],
        pass_fds=(fd, *fds),
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def note_started(path: str) -> None:
    """Note beside the socket that a saver has been started on it, so that somebody may be asked there."""
    _note(path).touch()


def was_started(path: str) -> bool:
    """Tell whether a saver has ever been started on the socket of an agent."""
    return _note(path).exists()


def tidy(path: str) -> None:
    """Remove a socket and what is noted beside it."""
    for file in (Path(path), _note(path)):
        file.unlink(missing_ok=True)


def _note(path: str) -> Path:
    return Path(f"{path}.started")


class SaverHome:
    """Without an agent: the first rank of a node keeps the saver, and replaces it when it dies."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="tlaunch-saver-")  # only its owner may enter
        self.path = str(Path(self._folder) / "socket")
        self._listener = listen(self.path)
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None
        self._lives = Lives()
        self._given_up = False
        self.pid = 0
        """The process that was started last."""

    def start(self) -> None:
        """Start a saver, unless one runs, or too many have died. Those who connect meanwhile wait at the socket.

        Raises:
            OSError: it cannot be listened there.
        """
        if self._keeper is not None and self._listener.fileno() < 0:
            self._keeper.join()  # it is about to end
        if not self._given_up and (self._keeper is None or not self._keeper.is_alive()):
            if self._listener.fileno() < 0:
                Path(self.path).unlink(missing_ok=True)
                self._listener = listen(self.path)
            self._keeper = threading.Thread(target=self._keep, name="checkpoint saver", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        another = True
        while another:
            self._lives.begin()
            try:
                process = start_saver(self._listener, f"--tidy={self.path}")
            except OSError as error:
                log.error("no saver can be started: %s; the next save tries it again", error)  # noqa: TRY400
                self._listener.close()  # whoever waits there is refused
                return
            self.pid = process.pid
            code = process.wait()
            if code == 0 or self._closing.is_set():
                return  # all trainers have left it
            another = self._lives.end()
            log.warning("the saver process has ended with %d%s", code, "; another one is started" if another else "")
        log.error("%d saver processes have died: nothing is saved any more", LIVES)
        self._given_up = True
        self._listener.close()

    def close(self, *, wait: bool = True) -> None:
        """Wait for the saver's end, which comes when all trainers have left and everything is written."""
        self._closing.set()
        if self._keeper is not None and wait:
            self._keeper.join(CLOSING)
            if self._keeper.is_alive():
                log.error("the saver process %d does not end within %g s, and is killed", self.pid, CLOSING)
                os.kill(self.pid, signal.SIGKILL)
                self._keeper.join(CLOSING)  # one that a disk holds up does not even die
        self._listener.close()
        with contextlib.suppress(OSError):
            Path(self.path).unlink()
            Path(self._folder).rmdir()
