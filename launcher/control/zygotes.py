"""The way to a zygote: one that serves several agents, or the agent's own. One that died is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from tlaunch.launcher.control.spawn import SpawnError, Zygote
from tlaunch.launcher.control.tasks import end_of
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.control.zygote_start import start_zygote, zygote_env
from tlaunch.launcher.process.lifeline import Lifeline
from tlaunch.launcher.process.scratch import Scratch
from tlaunch.launcher.store.endpoints import VARIABLES

log = logging.getLogger(__name__)

YOUNG = 10.0
"""Seconds. A zygote that does not live longer may not have come through its imports."""

YOUNG_DEATHS = 3
"""So many in a row that were killed young, and the next one would be too."""

SCRATCH = "tlaunch-zygote-"

SHARED_BY_DEFAULT = "OMP_NUM_THREADS"


def base_environment(env: Mapping[str, str], slots: int) -> dict[str, str]:
    """Return what workers and their zygote start from on a machine with so many slots.

    As under torchrun, a rank that is alone on its machine keeps all threads. How to get at the store is left out: it
    is none of their business, and a zygote's environment can be read in /proc for as long as any process lives that
    was forked from it.
    """
    base = zygote_env({name: value for name, value in env.items() if name not in VARIABLES})
    if slots == 1 and SHARED_BY_DEFAULT not in env:
        del base[SHARED_BY_DEFAULT]
    return base


@contextlib.asynccontextmanager
async def zygote_process(
    socket_path: str, env: Mapping[str, str], log_path: Path, tell: Callable[[str], None]
) -> AsyncIterator[None]:
    """Run a zygote for as long as the context lasts, and another one when it dies; workers live on without theirs.

    One that ends young by itself is not replaced, nor the last of several that were killed young. ``tell`` is told of
    every death.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    keeping = asyncio.create_task(_keep(socket_path, env, log_path, tell))
    try:
        await asyncio.sleep(0)  # so that the socket is there
        if keeping.done():
            keeping.result()
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def _keep(socket_path: str, env: Mapping[str, str], log_path: Path, tell: Callable[[str], None]) -> None:
    # What keeps the first from starting is our caller's to tell.
    age, code = await _run_one(socket_path, env, log_path, tell)
    young = 0
    try:
        while age >= YOUNG or (code < 0 and young < YOUNG_DEATHS - 1):
            young = 0 if age >= YOUNG else young + 1
            age, code = await _run_one(socket_path, env, log_path, tell)
    except OSError as error:
        tell(f"the zygote cannot be started again: {error}")


async def _run_one(
    socket_path: str, env: Mapping[str, str], log_path: Path, tell: Callable[[str], None]
) -> tuple[float, int]:
    """Run a zygote until it ends; return after how many seconds it did, and its exit code or minus its signal."""
    started = time.monotonic()
    with Lifeline() as lifeline:
        process = start_zygote(socket_path, env=env, log_path=str(log_path), lifeline=lifeline)
        try:
            code = await end_of(process)
        finally:
            lifeline.close()
            process.wait()  # killed by the line before, so it takes a moment only
    tell(f"the zygote has ended with exit code {code}: {_last_line(log_path)}")
    return time.monotonic() - started, code


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError as error:
        return f"its log cannot be read: {error}"
    return lines[-1] if lines else "it said nothing"


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
                self._zygote = await self._connect(socket)
            return self._zygote

    async def _connect(self, socket: str) -> Zygote:
        """Connect; where a zygote has just died, its successor gets a moment to listen."""
        deadline = time.monotonic() + self._timing.request
        while True:
            try:
                return await Zygote.connect(socket, timeout=self._timing.warm)
            except SpawnError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(self._timing.retry)

    async def close(self) -> None:
        """End the connection, with every process that came from it, and an own zygote too."""
        if self._zygote is not None:
            await self._zygote.close()
        await self._own.aclose()

    async def _start(self) -> str:
        scratch = Scratch(SCRATCH)
        self._own.callback(scratch.remove)
        socket = str(scratch.path / "zygote")
        await self._own.enter_async_context(zygote_process(socket, self._env, self._log, log.error))
        return socket
