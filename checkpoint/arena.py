"""Memory that the trainer fills and the saver writes from: shared, touched before it is needed, and used again.

It has no name in the file system, so that nothing is left of it when both are gone, however they went.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Self

from tlaunch.checkpoint.errors import CheckpointError

ALIGN = 64


def aligned(size: int) -> int:
    """Return the next multiple of ``ALIGN``."""
    return -(-size // ALIGN) * ALIGN


class Arena:
    """``size`` bytes behind ``fd``, which it owns from now on; whoever gets a copy of ``fd`` sees the same memory."""

    def __init__(self, fd: int, size: int, *, touch: bool = False) -> None:
        self.fd = fd
        self.size = size
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if touch else 0)
        try:
            self._map = mmap.mmap(fd, max(size, 1), flags=flags)
        except BaseException:
            os.close(fd)
            raise
        self.view = memoryview(self._map)[:size]
        self.before_close: list[Callable[[], object]] = []
        """Called before the memory goes."""

    @classmethod
    def make(cls, size: int) -> Self:
        """Make one whose every page is there: writing to it later neither fails nor waits for the kernel.

        Raises:
            CheckpointError: there is not enough memory.
        """
        try:
            return cls(_reserved(size), size, touch=True)
        except OSError as error:
            raise CheckpointError(f"a snapshot needs {size} bytes of shared memory: {error.strerror}") from error

    def close(self, *, discard: bool = False) -> None:
        """Let go of the memory; it is gone when the other process has let go too, or now, with ``discard``."""
        while self.before_close:
            self.before_close.pop()()
        self.view.release()
        self._map.close()
        if discard:
            os.ftruncate(self.fd, 0)
        os.close(self.fd)


def _reserved(size: int) -> int:
    """Return the descriptor of so many bytes, each of which is there."""
    fd = os.memfd_create("tlaunch-checkpoint", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, max(size, 1))
    except BaseException:
        os.close(fd)
        raise
    return fd
