"""Writing lines where a reader may pause, or go away, without holding up whoever has something to say."""

from __future__ import annotations

import os
import queue
import threading

MOST_LINES = 100_000
"""How many lines may wait for a reader; all that ranks print stands in their log files too."""

CLOSE_TIMEOUT = 5.0
"""Seconds that a reader has to take what is left."""


class Writer:
    """Writes lines to file descriptors, in order, from a thread of its own.

    Lines that find the queue full are left out, and their number is told. A descriptor that cannot be written to any
    more (its reader has gone, the disk is full) is given up in silence: a job does not end because of that.
    """

    def __init__(self, most: int = MOST_LINES) -> None:
        self._queue: queue.Queue[tuple[int, str] | None] = queue.Queue(most)
        self._left_out = 0
        self._started = False
        self._closed = False
        # It writes to the descriptors themselves: a thread that hangs in sys.stdout would block the way out of Python.
        self._thread = threading.Thread(target=self._run, name="tlaunch-writer", daemon=True)

    def write(self, fd: int, line: str) -> None:
        """Have a line written. Never blocks; does nothing after ``close``."""
        if self._closed:
            return
        if not self._started:
            self._started = True
            self._thread.start()
        try:
            if self._left_out:
                self._queue.put_nowait((fd, f"({self._left_out} lines left out; the log files have them)"))
                self._left_out = 0
            self._queue.put_nowait((fd, line))
        except queue.Full:
            self._left_out += 1

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Wait until all is written, for ``timeout`` seconds at most."""
        self._closed = True
        if not self._started:
            return
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return  # nobody has read anything all the time
        self._thread.join(timeout)

    def _run(self) -> None:
        broken: set[int] = set()
        while (item := self._queue.get()) is not None:
            fd, line = item
            if fd not in broken:
                try:
                    _write_all(fd, f"{line}\n".encode(errors="replace"))
                except OSError:
                    broken.add(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
