"""The way to a zygote: one that serves several agents, or the agent's own. One that died is replaced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tlaunch.launcher.control.spawn import Zygote
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.control.zygote_start import start_zygote, zygote_env
from tlaunch.launcher.process.lifeline import Lifeline
from tlaunch.launcher.process.scratch import Scratch

SCRATCH = "tlaunch-zygote-"

SHARED_BY_DEFAULT = "OMP_NUM_THREADS"


def base_environment(env: Mapping[str, str], slots: int) -> dict[str, str]:
    """Return what workers and their zygote start from on a machine with so many slots.

    As under torchrun, a rank that is alone on its machine keeps all threads.
    """
    base = zygote_env(env)
    if slots == 1 and SHARED_BY_DEFAULT not in env:
        del base[SHARED_BY_DEFAULT]
    return base


@contextlib.asynccontextmanager
async def zygote_process(socket_path: str, env: Mapping[str, str], log_path: Path) -> AsyncIterator[None]:
    """Run a zygote for as long as the context lasts. Its workers live on without it."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    lifeline = Lifeline()
    process = start_zygote(socket_path, env=env, log_path=str(log_path), lifeline=lifeline)
    try:
        yield
    finally:
        lifeline.close()
        await asyncio.to_thread(process.wait)


class ZygoteSource:
    """``socket``: where a shared zygote listens; ``None`` starts one for this agent alone, which logs to ``log``."""

    def __init__(self, socket: str | None, env: Mapping[str, str], log: Path, timing: Timing) -> None:
        self._socket = socket
        self._env = env
        self._log = log
        self._timing = timing
        self._own = contextlib.AsyncExitStack()
        self._zygote: Zygote | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> Zygote:
        """Return a connection to a living zygote. Raises ``SpawnError`` when there is none within the deadline."""
        async with self._lock:
            if self._zygote is None or not self._zygote.connected:
                await self._own.aclose()
                socket = self._socket or await self._start()
                self._zygote = await Zygote.connect(socket, timeout=self._timing.warm)
            return self._zygote

    async def close(self) -> None:
        """End the connection, with every process that came from it, and an own zygote too."""
        if self._zygote is not None:
            await self._zygote.close()
        await self._own.aclose()

    async def _start(self) -> str:
        scratch = Scratch(SCRATCH)
        self._own.callback(scratch.remove)
        socket = str(scratch.path / "zygote")
        await self._own.enter_async_context(zygote_process(socket, self._env, self._log))
        return socket
