"""What the benchmarks share: samples and tables, marks that a script sends, and processes that do not outlive us."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

BIN = Path(sys.executable).parent
SCRIPTS = Path(__file__).parent / "scripts"

_MARK = "TLAUNCH_BENCHMARK"
_END_SECONDS = 20.0


class Sample(NamedTuple):
    """One measurement: what, by whom, how much, in which unit. ``value`` is ``None`` where it did not come about."""

    what: str
    who: str
    value: float | None
    unit: str


def cell(samples: Sequence[Sample]) -> str:
    """Write the median and the range of one arm, and how often there was nothing to measure."""
    if not samples:
        return "-"
    numbers = [sample.value for sample in samples if sample.value is not None]
    never = len(samples) - len(numbers)
    digits = 0 if samples[0].unit == "MB" else 2
    told = [f"never: {never} of {len(samples)}"] if never else []
    if numbers:
        low, middle, high = (
            f"{value:.{digits}f}" for value in (min(numbers), statistics.median(numbers), max(numbers))
        )
        told.insert(0, f"{middle} ({low} to {high}) {samples[0].unit}".rstrip())
    return "; ".join(told)


def write_json(path: Path, samples: Iterable[Sample]) -> None:
    """Write every single measurement."""
    path.write_text(json.dumps([sample._asdict() for sample in samples], indent=1) + "\n")


class Report:
    """Samples that a script writes while it runs, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)

    def __call__(self, what: str, who: str, value: float | None, unit: str) -> None:
        self._file.write(json.dumps({"what": what, "who": who, "value": value, "unit": unit}) + "\n")

    def cannot(self, who: str, error: BaseException) -> None:
        """Say why somebody is left out."""
        self._file.write(json.dumps({"cannot": f"{type(error).__name__}: {error}".splitlines()[0], "who": who}) + "\n")


class Mark(NamedTuple):
    """What a rank has come to: see ``scripts/train_steps.py``."""

    pid: int
    rank: int
    world: int
    place: str
    what: str
    at: float
    step: int


class Marks:
    """The fifo ``marks`` in a folder, and everything that has come out of it so far."""

    def __init__(self, folder: Path) -> None:
        path = folder / "marks"
        os.mkfifo(path)
        # Opened for both directions: no open or read waits for a rank that died.
        self._fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        self.all: list[Mark] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fifo)

    def news(self, seconds: float) -> bool:
        """Wait so long at most for more marks; false when there were none."""
        ready, _, _ = select.select([self._fifo], [], [], max(0.0, seconds))
        if ready:
            *lines, self._rest = (self._rest + os.read(self._fifo, 1 << 16)).split(b"\n")
            self.all += [Mark(**json.loads(line)) for line in lines]
        return bool(ready)


@dataclass
class Family:
    """Processes that are started together and end together, whatever sessions and groups they make for themselves.

    They are known by a variable in their environment. ``said`` is what they have printed, with the time of each line
    by the monotonic clock.
    """

    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    said: list[tuple[float, str]] = field(default_factory=list)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _readers: list[threading.Thread] = field(default_factory=list)

    def start(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, branch: str = "") -> None:
        """Start a program. ``branch`` tells apart what ``kill`` can end alone."""
        process = subprocess.Popen(
            command,
            env={**os.environ, **env, _MARK: f"{self.name}/{branch}"},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(process)
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        self._readers.append(reader)

    def kill(self, branch: str = "") -> None:
        """SIGKILL everything of the family, or of one branch; what is started meanwhile, too."""
        while members := list(self.members(branch)):
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.started:
                process.poll()

    def members(self, branch: str = "") -> Iterator[int]:
        """Find the processes by their environment."""
        wanted = f"{_MARK}={self.name}/{branch}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # it has ended
                    if wanted in (entry / "environ").read_bytes():
                        yield int(entry.name)

    def first_line(self, pattern: str, after: float) -> float | None:
        """Return when the first line that matches was printed after a moment."""
        found = re.compile(pattern)
        return next((at for at, line in list(self.said) if at > after and found.search(line)), None)

    def close(self) -> None:
        """Interrupt what was started, give it a moment, and kill what is left."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _END_SECONDS
        for process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, min(3.0, deadline - time.monotonic())))
        self.kill()
        for process, reader in zip(self.started, self._readers, strict=True):
            process.wait(_END_SECONDS)
            reader.join(_END_SECONDS)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                self.said.append((time.monotonic(), line.decode(errors="replace").rstrip()))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, without one that is not complete yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
