"""What a test holds of the machine, and what it has left behind.

``Run.take`` lists processes, threads, file descriptors, shared memory and sockets; ``Run.leaked`` compares two lists
and says in words what is new. Processes are found in two ways, because a daemon leaves its parent and a child may drop
its environment: everything below this process, and everything that carries this test run's mark in its environment.
"""

from __future__ import annotations

import gc
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE = 5.0  # seconds that things which are just about to go are waited for
MARK = "TLAUNCH_TEST_RUN"
STDERR = 2
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is not mistaken for a later one with the same number."""

    pid: int
    started: float


@dataclass(frozen=True, slots=True)
class Holdings:
    """What this test run holds. Each maps a thing to its description for people."""

    processes: dict[Process, str]
    threads: dict[threading.Thread, str]
    descriptors: dict[tuple[int, Path], str]
    shared_memory: dict[Path, str]
    files: dict[Path, str]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of pytest, or one of its workers: the mark that its processes inherit, and its temporary directory."""

    mark: str
    temporary: Path

    def take(self) -> Holdings:
        """List what is held now."""
        return Holdings(
            processes=dict(_processes(self.mark)),
            threads=dict(_threads()),
            descriptors=dict(_descriptors()),
            shared_memory={path: f"shared memory {path}" for path in SHARED_MEMORY.iterdir()},
            files=dict(_files(self.temporary)),
        )

    def leaked(self, before: Holdings, patience: float = PATIENCE) -> list[str]:
        """Return one line for each thing that is held now and was not before, after waiting for it to go."""
        new = _new(before, self.take())
        if not new:
            return []
        gc.collect()  # what hangs in a reference cycle is closed late, but it is not lost
        deadline = time.monotonic() + patience  # only now: on a busy machine all this takes seconds
        while (new := _new(before, self.take())) and time.monotonic() < deadline:
            time.sleep(0.02)
        return new


def new_shared_memory(before: Holdings, now: Holdings) -> list[str]:
    """Describe the shared memory that was not there before and that no other program holds."""
    mine = {os.getpid(), *(process.pid for process in now.processes)}
    new = now.shared_memory.keys() - before.shared_memory.keys()
    return [now.shared_memory[path] for path in sorted(new) if not _foreign(path, mine)]


def _new(before: Holdings, now: Holdings) -> list[str]:
    return [
        *(text for key, text in now.processes.items() if key not in before.processes),
        *(text for key, text in now.threads.items() if key not in before.threads),
        *(text for key, text in now.descriptors.items() if key not in before.descriptors),
        *new_shared_memory(before, now),
        *(text for key, text in now.files.items() if key not in before.files),
    ]


def _processes(mark: str) -> Iterator[tuple[Process, str]]:
    me = os.getpid()
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    wanted = f"{MARK}={mark}".encode()
    for process in psutil.process_iter():
        try:
            if process.pid != me and (process.pid in children or wanted in _environment(process.pid)):
                yield Process(process.pid, process.create_time()), _describe(process)
        except psutil.NoSuchProcess:
            continue


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone meanwhile, a zombie, or another user's
        return []


def _describe(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline()) or process.name()
        if process.status() == psutil.STATUS_ZOMBIE:
            return f"process {process.pid} has ended, and nobody waited for it: {command}"
    except psutil.ZombieProcess:
        return f"process {process.pid} has ended, and nobody waited for it"
    return f"process {process.pid} still runs: {command}"


def _threads() -> Iterator[tuple[threading.Thread, str]]:
    for thread in threading.enumerate():
        if not thread.name.startswith("pytest_timeout"):  # the watchdog of the test that runs now
            yield thread, f"thread {thread.name!r}"


def _descriptors() -> Iterator[tuple[tuple[int, Path], str]]:
    for entry in Path("/proc/self/fd").iterdir():
        number = int(entry.name)
        try:
            target = entry.readlink()
        except FileNotFoundError:  # the descriptor that listed the directory
            continue
        if number > STDERR:  # pytest's capturing moves the first three about
            yield (number, target), f"file descriptor {number} -> {target}"


def _files(temporary: Path) -> Iterator[tuple[Path, str]]:
    """Sockets anywhere below, and the private directories that tlaunch makes for itself."""
    for path in temporary.rglob("*"):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # gone meanwhile
            continue
        if stat.S_ISSOCK(mode):
            yield path, f"socket {path}"
        elif stat.S_ISDIR(mode) and path.name.startswith("tlaunch"):
            yield path, f"directory {path}"


def _foreign(path: Path, mine: set[int]) -> bool:
    """Whether a process outside this test run holds the shared memory: other programs on this machine use some too.

    So do the other workers of a run, each of which is a ``Run`` of its own.
    """
    return any(_maps(pid, path) for pid in psutil.pids() if pid not in mine)


def _maps(pid: int, path: Path) -> bool:
    try:
        return str(path) in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:  # gone meanwhile, or another user's
        return False
