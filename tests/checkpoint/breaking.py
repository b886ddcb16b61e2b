"""Ways to break files, and disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest


def flip(path: Path, byte: int, bit: int = 0) -> None:
    """Change one bit of a file; a negative ``byte`` counts from its end."""
    with path.open("r+b") as file:
        at = file.seek(byte, os.SEEK_END if byte < 0 else os.SEEK_SET)
        (old,) = file.read(1)
        file.seek(at)
        file.write(bytes([old ^ 1 << bit]))


def fill_up(patch: pytest.MonkeyPatch, left: int) -> None:
    """Have the disk take ``left`` more bytes, and be full then."""
    write, room = os.write, left

    def filling_up(fd: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(fd, memoryview(data)[:room])
        room -= count
        return count

    patch.setattr(os, "write", filling_up)
