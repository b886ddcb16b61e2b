"""The job as a user handles it: with the ``tlaunch`` command, and with what the operating system tells about it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

_COMMAND_DEADLINE = 30.0  # seconds for one command that talks to the running job
_END_DEADLINE = 20.0  # seconds that a job which was told to stop may take
_LOOK = 0.5  # seconds between two looks at the machine's memory
_SAMPLING_SHARE = 0.1  # of one core, for looking at the memory of some 110 processes
# A line of a traceback as torch.distributed prints it. When one rank dies, all others lose a peer and say so at length;
# each one's own log has it.
_TRACEBACK = re.compile(r"\[\d+\] \[rank\d+\]:")


class CommandFailed(Exception):
    """A ``tlaunch`` command did not do what it was asked to; the message is what it said."""


def tlaunch(*words: str) -> list[str]:
    """The command line of the ``tlaunch`` that is installed beside this Python."""
    return [str(Path(sys.executable).with_name("tlaunch")), *words]


def ask(*words: str) -> str:
    """Run a command that talks to the running job and return what it prints. Raise ``CommandFailed``."""
    try:
        done = subprocess.run(tlaunch(*words), check=False, capture_output=True, text=True, timeout=_COMMAND_DEADLINE)
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"tlaunch {' '.join(words)}: no answer within {_COMMAND_DEADLINE:g} s") from None
    if done.returncode != 0:
        raise CommandFailed(done.stderr.strip() or f"tlaunch {' '.join(words)}: exit code {done.returncode}")
    return done.stdout


def slot_of(status: Mapping[str, Any], rank: int) -> tuple[str, str]:
    """The node and the GPU (``node-03/gpu-2``) that a rank is on, from what ``tlaunch status --json`` prints."""
    for node in status["nodes"]:
        for index, slot in enumerate(node["slots"]):
            if slot["rank"] == rank:
                return node["name"], f"{node['name']}/gpu-{index}"
    raise CommandFailed(f"tlaunch status shows no rank {rank}")


class Job:
    """A running ``tlaunch``, whose output is passed on line by line."""

    def __init__(self, process: subprocess.Popen[str], job_id: str) -> None:
        self._process = process
        self.job_id = job_id
        self.started = time.time()

    @property
    def pid(self) -> int:
        """The process id of the launcher."""
        return self._process.pid

    def ended(self, within: float) -> bool:
        """Wait up to ``within`` seconds for the launcher's end."""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        return True

    def exit_code(self) -> int:
        """Wait for the launcher's end."""
        return self._process.wait()

    def status(self) -> dict[str, Any]:
        """What ``tlaunch status --json`` says. Raise ``CommandFailed``."""
        status: dict[str, Any] = json.loads(ask("status", "--json", self.job_id))
        return status

    def kill(self, flag: str, name: str) -> None:
        """Cause a failure with ``tlaunch kill``. Raise ``CommandFailed``."""
        ask("kill", "--job-id", self.job_id, flag, name)


@contextmanager
def running(job_id: str, options: Sequence[str]) -> Iterator[Job]:
    """Start ``tlaunch`` with these options; on the way out, end it if it still runs."""
    # Through a pipe tlaunch prints plain lines, which can stand between those of the demo.
    process = subprocess.Popen(
        tlaunch("--job-id", job_id, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    relay = threading.Thread(target=_pass_on, args=(process,), name="output")
    relay.start()
    try:
        yield Job(process, job_id)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_END_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()  # the kernel ends everything that hangs on a launcher which is gone
        process.wait()
        relay.join()


def _pass_on(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    with process.stdout:
        for line in process.stdout:
            if not _TRACEBACK.match(line):
                print(line, end="", flush=True)


class Memory:
    """Looks now and then at how much memory a process and all its descendants use together.

    The measure is the proportional set size: a page that n processes share counts 1/n for each of them. It takes time
    to find out, so a short peak may be missed. What the whole machine has left is known at once, but other programs
    use it too; that is why both are kept.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0  # bytes
        self.processes = 0  # the most at once
        self._available = self._least = psutil.virtual_memory().available
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory")

    @property
    def taken(self) -> int:
        """By how many bytes the machine's available memory has fallen at most."""
        return self._available - self._least

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(_LOOK):
            self._least = min(self._least, psutil.virtual_memory().available)
            if time.monotonic() >= due:
                began = time.thread_time()
                self._add_up()
                due = time.monotonic() + (time.thread_time() - began) / _SAMPLING_SHARE

    def _add_up(self) -> None:
        try:
            family = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        sizes = [size for process in family if (size := proportional_size(process.pid)) is not None]
        self.peak = max(self.peak, sum(sizes))
        self.processes = max(self.processes, len(sizes))


def proportional_size(pid: int) -> int | None:
    """The proportional set size of one process in bytes; ``None`` if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None  # a process that has ended and waits for its parent has no memory
