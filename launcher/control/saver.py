"""The saver of a node: the process that writes the checkpoints which the node's ranks have captured.

The agent has only its socket until a rank connects. It outlives the ranks, is replaced when it dies, and ends with the
agent, in whatever way that ends: the agent holds a pipe, whose hang-up tells the saver to finish and to go.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen
from typing import IO

from tlaunch.checkpoint.home import LIVES, Lives, listen, note_started, start_saver, tidy
from tlaunch.launcher.control.tasks import end_of
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.process.scratch import Scratch

log = logging.getLogger(__name__)

SCRATCH = "tlaunch-save-"

PREFIX = "s"
"""What the name of a socket begins with; its agent's pid follows."""


class NodeSaver:
    """What an agent has of its saver.

    Args:
        env: what the saver finds in ``os.environ``.
        log_file: what it says goes there.
        timing: ``saver`` is how long it may take to finish.
        folder: where the socket is, a folder of the user's alone, which others remove in the end; ``None`` makes one.

    """

    def __init__(self, env: Mapping[str, str], log_file: Path, timing: Timing, folder: Path | None = None) -> None:
        self._env = env
        self._log_file = log_file
        self._timing = timing
        self._scratch: Scratch | None = None
        if folder is None:
            self._scratch = Scratch(SCRATCH)
            folder = self._scratch.path
        _sweep(folder)
        self.path = str(folder / f"{PREFIX}{os.getpid()}")
        """Where ranks connect."""
        self._listener = listen(self.path)
        self._lifeline, self._held = os.pipe2(os.O_CLOEXEC)
        self._lives = Lives()
        self._process: Popen[bytes] | None = None
        self._minding: asyncio.Task[None] | None = None
        self._let_go = False

    def open(self) -> None:
        """Start a saver as soon as somebody connects."""
        asyncio.get_running_loop().add_reader(self._listener, self._start)

    def let_go(self) -> None:
        """Have the saver finish what the ranks have left. They have to be gone. Safe to call twice."""
        if self._let_go:
            return
        self._let_go = True
        self._close_listener()
        os.close(self._lifeline)
        os.close(self._held)

    async def end(self) -> None:
        """Wait until the saver has finished; kill it when that takes too long."""
        self.let_go()
        if self._minding is not None and self._process is not None:
            _, late = await asyncio.wait([self._minding], timeout=self._timing.saver)
            if late:
                self._process.kill()
                await asyncio.wait([self._minding], timeout=self._timing.reap)
            self._minding.cancel()
        tidy(self.path)
        if self._scratch is not None:
            self._scratch.remove()

    def _start(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._lives.begin()
        options = (f"--lifeline-fd={self._lifeline}", f"--within={self._timing.saver}")
        try:
            note_started(self.path)
            with _opened(self._log_file) as output:
                self._process = start_saver(
                    self._listener, *options, fds=[self._lifeline], env=self._env, output=output
                )
        except OSError as error:
            log.error("no saver can be started, so nothing is saved on this node: %s", error)  # noqa: TRY400
            self._close_listener()
            return
        self._minding = asyncio.create_task(self._mind(self._process))

    async def _mind(self, process: Popen[bytes]) -> None:
        code = await end_of(process)
        if self._let_go:
            if code:
                log.error(
                    "the saver has ended with %d before everything was written; its log is %s", code, self._log_file
                )
        elif self._lives.end():
            log.error("the saver has ended with %d; another one is started when it is needed", code)
            self.open()
        else:
            log.error(
                "the saver has ended with %d, the last of %d: nothing is saved on this node any more", code, LIVES
            )
            self._close_listener()

    def _close_listener(self) -> None:
        """Whoever connects from now on is refused at once."""
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()


def _sweep(folder: Path) -> None:
    """Remove the sockets of agents that were killed. Their ranks are gone with them, so nobody connects there."""
    for left in folder.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition(".")[0]
        if pid.isdigit() and (int(pid) == os.getpid() or not Path("/proc", pid).exists()):
            tidy(str(folder / f"{PREFIX}{pid}"))


def _opened(log_file: Path) -> IO[bytes]:
    """Open a log; a full disk is no reason not to save elsewhere."""
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        return log_file.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")
