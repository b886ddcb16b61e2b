"""Threads that Python has not started: those of gloo, NCCL, autograd and the like.

After each collective a thread of gloo's needs the interpreter's lock once more, to let go of what the collective held
of Python. When the interpreter begins to finalize, a thread that waits for the lock is ended by ``pthread_exit``; in
the middle of C++ that aborts the process. (A thread that comes later sees that there is no interpreter any more.) A
script that ends just after a collective is at that risk under plain Python too, whose exit handlers take so long with
torch that the threads are through by then.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

# How long a thread may be busy, or wait for a processor, until it is taken for one that always is; and how long it is
# left to itself at a time.
_BUSY_SECONDS = 0.3
_NAP_SECONDS = 0.001


def wait_for_foreign_threads() -> None:
    """Wait until threads that Python has not started have nothing to do, or for 0.3 seconds."""
    deadline = time.monotonic() + _BUSY_SECONDS
    quiet = 0
    # Once is not enough: a thread that came to wait for the lock while this one looked around sleeps as well. While
    # this one naps the lock is free, and the other gets it or is seen to be about to.
    while quiet < 2 and time.monotonic() < deadline:
        states = _foreign_states()
        if not states:
            return
        quiet = quiet + 1 if states == {"S"} else 0
        time.sleep(_NAP_SECONDS)


def _foreign_states() -> set[str]:
    """Return the states of the threads that Python has not started, by their letters in proc(5)."""
    # The main thread of a process that a script has forked still goes by its parent's number in `threading`.
    ours = {threading.get_native_id(), *(thread.native_id for thread in threading.enumerate())}
    states = set()
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) not in ours:
            with contextlib.suppress(OSError):  # it has ended
                states.add(task.joinpath("stat").read_text().rpartition(")")[2].split()[0])
    return states
