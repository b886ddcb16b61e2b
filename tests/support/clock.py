"""A time of day that tests move, for a whole job or for some of its processes, by a library that is loaded first."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")
SIZE = 64
PAIR = struct.Struct("qq")
EVERYBODY = 0


@dataclass
class Clock:
    """``env``: what has to stand in the environment of processes for which it holds."""

    env: Mapping[str, str]
    _shared: mmap.mmap
    _places: dict[int, int] = field(default_factory=dict)

    def move(self, seconds: int, pids: Iterable[int] = (EVERYBODY,)) -> None:
        """Let it be so many seconds later than it is, for some processes. Only ahead: the kernel's clock stays.

        A deadline that a process computes from a clock that is behind the kernel's would pass at once.
        """
        assert seconds >= 0
        for pid in pids:
            place = self._places.setdefault(pid, len(self._places))
            assert place < SIZE
            PAIR.pack_into(self._shared, place * PAIR.size, pid, seconds)


@contextmanager
def clock(folder: Path) -> Iterator[Clock]:
    """Compile the library into ``folder``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "these tests need a C compiler, as cc or gcc"
    library, offsets = folder / "clock.so", folder / "offsets"
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
    subprocess.run([*command, "-ldl"], check=True, timeout=60)
    offsets.write_bytes(bytes(SIZE * PAIR.size))
    with offsets.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        yield Clock({"LD_PRELOAD": str(library), "CLOCK_OFFSETS": str(offsets)}, shared)
