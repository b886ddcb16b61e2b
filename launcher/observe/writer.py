"""Writing lines where a reader may pause, or go away, without holding up whoever has something to say."""

from __future__ import annotations

import os
import queue
import threading

MOST_BYTES = 1 << 24
"""How much may wait for a reader; all that ranks print stands in their log files too."""

PER_LINE = 100
"""Bytes that a line which waits takes beside its text, so that empty ones cannot pile up without end either."""

CLOSE_TIMEOUT = 5.0
"""Seconds that a reader has to take what is left."""


class Writer:
    """Writes lines to file descriptors, in order, from a thread of its own.

    Lines for which there is no room are left out, and their number is told. A descriptor that cannot be written to any
    more (its reader has gone, the disk is full) is given up in silence: a job does not end because of that.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._queue: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._most = most
        self._waiting = 0
        self._counting = threading.Lock()
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
        told = f"({self._left_out} lines left out; the log files have them)\n" if self._left_out else ""
        data = f"{told}{line}\n".encode(errors="replace")
        with self._counting:
            fits = self._waiting + len(data) + PER_LINE <= self._most
            if fits:
                self._waiting += len(data) + PER_LINE
        if fits:
            self._queue.put((fd, data))
        self._left_out = 0 if fits else self._left_out + 1

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Wait until all is written, for ``timeout`` seconds at most."""
        self._closed = True
        if not self._started:
            return
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        broken: set[int] = set()
        while (item := self._queue.get()) is not None:
            fd, data = item
            if fd not in broken:
                try:
                    _write_all(fd, data)
                except OSError:
                    broken.add(fd)
            with self._counting:
                self._waiting -= len(data) + PER_LINE


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
