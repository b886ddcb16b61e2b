"""The agent's way to a zygote: one that serves several agents, or its own. A zygote that died is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path

from tlaunch.launcher.control.spawn import Zygote, ZygoteProcess
from tlaunch.launcher.control.timing import Timing


class ZygoteSource:
    """``socket``: where a shared zygote listens; ``None`` starts one for this agent alone, which logs to ``log``."""

    def __init__(self, socket: str | None, log: Path, timing: Timing) -> None:
        self._socket = socket
        self._log = log
        self._timing = timing
        self._own = contextlib.AsyncExitStack()
        self._zygote: Zygote | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> Zygote:
        """Return a connection to a living zygote. Raises ``SpawnError`` when there is none within the deadline."""
        async with self._lock:
            if self._zygote is None or not self._zygote.connected:
                await self._drop()
                socket = self._socket or await self._start()
                self._zygote = await Zygote.connect(socket, timeout=self._timing.warm)
            return self._zygote

    async def close(self) -> None:
        """End the connection, with every process that came from it, and an own zygote too."""
        await self._drop()

    async def _start(self) -> str:
        folder = self._own.enter_context(tempfile.TemporaryDirectory(prefix="tlaunch-zygote-"))
        socket = os.path.join(folder, "zygote")  # noqa: PTH118  the socket's address is text
        await self._own.enter_async_context(ZygoteProcess(socket, dict(os.environ), self._log.with_suffix(".zygote.log")))
        return socket

    async def _drop(self) -> None:
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None
        await self._own.aclose()
