"""Agents as child processes of the launcher: how a job's nodes run on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tlaunch.launcher.control.config import AgentConfig
from tlaunch.launcher.observe.view import View
from tlaunch.launcher.process.lifeline import Lifeline

LINE_LIMIT = 1 << 17
TAIL = 4096


@dataclass
class AgentProcess:
    """One agent. Its standard output carries its ranks' lines; its own log goes to a file. ``ended`` is called once."""

    config: AgentConfig
    env: Mapping[str, str]
    view: View
    ended: Callable[[], None]
    _lifeline: Lifeline = field(default_factory=Lifeline)
    _process: asyncio.subprocess.Process | None = None
    _relay: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.config.node.name

    @property
    def log(self) -> Path:
        return self.config.log_dir / "agents" / f"{self.name}.log"

    @property
    def code(self) -> int | None:
        """The exit code; ``None`` while it runs."""
        return None if self._process is None else self._process.returncode

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.code is not None and self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"

    async def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = replace(self.config, lifeline=self._lifeline.read_fd).command()
        with self.log.open("ab") as log:
            # -P: a logging.py in the user's working directory must not take the place of the standard library's.
            # faulthandler: should a library abort the process, the agent's log says where.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-X", "faulthandler", "-m", "tlaunch.launcher.control", *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=dict(self.env),
                limit=LINE_LIMIT,
                **self._lifeline.popen_kwargs(),
            )
        self._lifeline.guard(self._process.pid)
        self._relay = asyncio.create_task(self._relay_lines())

    async def finish(self, grace: float, reap: float) -> None:
        """Wait for the agent to end by itself; after ``grace`` seconds kill it with all that runs under it.

        One that the kernel cannot end within ``reap`` seconds is left to it.
        """
        if self._process is not None and self._relay is not None:
            await asyncio.wait([self._relay], timeout=grace)
            self._lifeline.close()
            _, late = await asyncio.wait([self._relay], timeout=reap)
            if late:
                self.view.notice(f"the agent of {self.name} does not die of SIGKILL; it is left behind")
                self._relay.cancel()
        self._lifeline.close()

    def terminate(self) -> None:
        """Have it end its ranks and itself, without being told by the store."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill it at once, with everything that runs under it."""
        self._lifeline.close()

    def last_words(self) -> str:
        """Return the last line of the agent's log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    async def _relay_lines(self) -> None:
        """Hand on what the ranks print until the agent has ended."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        try:
            while line := await _line(process.stdout):
                self._show(line)
            await process.wait()
        finally:
            self.ended()

    def _show(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            if "notice" in record:
                self.view.notice(f"{self.name}: {record['notice']}")
                return
            rank, stream, text = record["rank"], record["stream"], record["text"]
        except (ValueError, TypeError, KeyError, RecursionError):  # not ours: something in the agent has printed it
            self.view.notice(f"the agent of {self.name} said: {line.decode(errors='replace').rstrip()}")
        else:
            self.view.worker_line(rank, stream, text)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line, empty at the end. Of one that is too long to be ours the beginning is left out."""
    while True:
        with contextlib.suppress(ValueError):
            return await stream.readline()
