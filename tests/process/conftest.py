"""One zygote for all tests of this room, and a way to run a script under it and under plain Python."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from tlaunch.launcher.control.spawn import Process, Zygote
from tlaunch.launcher.control.zygote_start import start_zygote, zygote_env
from tlaunch.launcher.process.lifeline import Lifeline
from tlaunch.launcher.process.messages import Exit, Work

# A zygote that imports torch from a cold disk, on a machine that does other things.
IMPORT_SECONDS = 90.0
DEADLINE = 60.0


@dataclass(frozen=True)
class RunningZygote:
    socket_path: str
    log_path: Path
    env: Mapping[str, str]
    process: subprocess.Popen[bytes]
    lifeline: Lifeline


def _start() -> Iterator[RunningZygote]:
    with tempfile.TemporaryDirectory(prefix="tlaunch-") as folder, Lifeline() as lifeline:
        env = zygote_env({name: value for name, value in os.environ.items() if not name.startswith("PYTHON")})
        socket_path = f"{folder}/zygote"
        log_path = Path(folder, "zygote.log")
        process = start_zygote(socket_path, env=env, log_path=str(log_path), lifeline=lifeline)
        yield RunningZygote(socket_path, log_path, env, process, lifeline)
        lifeline.close()
        process.wait(DEADLINE)


@pytest.fixture(scope="session")
def shared_zygote() -> Iterator[RunningZygote]:
    for running in _start():
        yield running
        assert running.log_path.read_text() == ""


@pytest.fixture
def own_zygote() -> Iterator[RunningZygote]:
    """For tests that end it."""
    yield from _start()


@pytest_asyncio.fixture
async def zygote(shared_zygote: RunningZygote) -> AsyncIterator[Zygote]:
    client = await Zygote.connect(shared_zygote.socket_path, timeout=DEADLINE)
    yield client
    await client.close()


@pytest_asyncio.fixture
async def standby(zygote: Zygote) -> Process:
    return await zygote.standby(timeout=IMPORT_SECONDS)


@pytest.fixture
def work(tmp_path: Path, shared_zygote: RunningZygote) -> Callable[..., Work]:
    """Make a ``Work`` in the test's own folder from a script's text or, without one, from ``argv``."""

    def make(
        source: str = "", *, argv: tuple[str, ...] = (), env: Mapping[str, str] | None = None, **other: object
    ) -> Work:
        if source:
            (tmp_path / "script.py").write_text(source)
            argv = (str(tmp_path / "script.py"), *argv)
        basic = Work(
            argv, {**shared_zygote.env, **(env or {})}, str(tmp_path), str(tmp_path / "out"), str(tmp_path / "err")
        )
        return replace(basic, **other)  # type: ignore[arg-type]

    return make


@dataclass(frozen=True)
class Outcome:
    stdout: str
    stderr: str
    code: int | None
    """As ``subprocess`` has it: negative for a signal."""


@pytest.fixture
def plain(tmp_path: Path) -> Callable[[Work], Outcome]:
    """Run a ``Work`` with a plain interpreter."""

    def run(work: Work) -> Outcome:
        out, err = tmp_path / "plain-out", tmp_path / "plain-err"
        command = [sys.executable, *(["-m"] if work.module else []), *work.argv]
        with out.open("a") as stdout, err.open("a") as stderr:
            done = subprocess.run(
                command, env=dict(work.env), cwd=work.cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                start_new_session=True, check=False, timeout=DEADLINE,
            )  # fmt: skip
        return Outcome(out.read_text(), err.read_text(), done.returncode)

    return run


async def run(process: Process, work: Work) -> Outcome:
    """Run a ``Work`` in a standby to its end."""
    process.start(work)
    ended: Exit = await process.ended
    return outcome(work, ended)


async def run_each(zygote: Zygote, tasks: list[Work]) -> list[Outcome]:
    """Run tasks at the same time; their output files are made different."""

    async def one(number: int, task: Work) -> Outcome:
        process = await zygote.standby(timeout=IMPORT_SECONDS)
        return await run(process, replace(task, stdout=f"{task.stdout}.{number}", stderr=f"{task.stderr}.{number}"))

    return await asyncio.gather(*(one(number, task) for number, task in enumerate(tasks)))


def outcome(work: Work, ended: Exit) -> Outcome:
    code = ended.code if ended.signal is None else -ended.signal
    return Outcome(Path(work.stdout).read_text(), Path(work.stderr).read_text(), code)


def comparable(outcome: Outcome) -> Outcome:
    """Leave out what differs from one run of plain Python to the next, and how deep the stack was at the start."""
    stderr = re.sub(r"Previous line repeated 9\d\d more times", "Previous line repeated", outcome.stderr)
    return Outcome(_without_addresses(outcome.stdout), _without_addresses(stderr), outcome.code)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


SLEEP = "import time; time.sleep(600)"
# A worker that starts a grandchild and tells its pid on stdout.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
"""


@pytest_asyncio.fixture
async def own_client(own_zygote: RunningZygote) -> AsyncIterator[Zygote]:
    client = await Zygote.connect(own_zygote.socket_path, timeout=DEADLINE)
    yield client
    await client.close()


async def readable(fd: int) -> bool:
    """Wait until a descriptor can be read, which for a pidfd means that the process has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        async with asyncio.timeout(DEADLINE):
            await event.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


async def first_line(path: str) -> str:
    """Wait for a worker's first line of output."""
    async with asyncio.timeout(DEADLINE):
        while "\n" not in (text := _content(Path(path))):  # noqa: ASYNC110 - a file tells nobody that it has grown
            await asyncio.sleep(0.01)
    return text.partition("\n")[0]


def _content(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def start(process: Process, task: Work) -> str:
    """Start work and wait for its first line."""
    process.start(task)
    return await first_line(task.stdout)


@pytest.fixture
def pidfds() -> Iterator[Callable[[int], int]]:
    fds: list[int] = []

    def make(pid: int) -> int:
        fds.append(os.pidfd_open(pid))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)
