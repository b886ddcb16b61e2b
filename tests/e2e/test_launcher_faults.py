"""A launcher at a terminal: what is typed there, and what becomes of the job when the terminal goes."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.faults import fault
from tests.e2e.job import PATIENCE, Job, running
from tests.e2e.test_ends import IN_ORDER, LOST, PAIR, all_gone, family

# The launcher leads a session already; this makes its standard input the session's terminal.
OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


@contextlib.contextmanager
def at_a_terminal(tmp_path: Path) -> Iterator[tuple[Job, int]]:
    """Start a job as from a shell; yields what is the keyboard and the screen, too."""
    screen, slave = pty.openpty()
    os.set_blocking(screen, False)
    try:
        with running(tmp_path, *PAIR, prefix=(sys.executable, "-c", OWN_TERMINAL), terminal=slave) as job:
            os.close(slave)
            slave = -1
            yield job, screen
    finally:
        for fd in (slave, screen):
            with contextlib.suppress(OSError):  # closed in the test
                os.close(fd)


def shown(job: Job, screen: int) -> str:
    """Read the screen until the launcher has ended."""
    text = b""
    deadline = time.monotonic() + PATIENCE
    while job.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError, OSError):
            text += os.read(screen, 1 << 16)
        time.sleep(0.01)
    with contextlib.suppress(BlockingIOError, OSError):
        while chunk := os.read(screen, 1 << 16):
            text += chunk
    return text.decode(errors="replace")


@fault("launcher", "Ctrl-C", noticed="at once", decision=IN_ORDER, lost=LOST)
def test_ctrl_c_stops_everything_in_order(tmp_path: Path) -> None:
    with at_a_terminal(tmp_path) as (job, screen):
        job.seats(0, 2)
        processes = family(job)
        os.write(screen, b"\x03")
        text = shown(job, screen)
        assert job.ended() == 128 + signal.SIGINT
        assert all_gone(processes)
        assert "stopped by SIGINT" in text


@fault(
    "launcher",
    "terminal closed",
    noticed="at once: the kernel sends SIGHUP",
    decision=f"{IN_ORDER}; under `nohup`, or where SIGHUP is ignored, the job goes on",
    lost=LOST,
)
def test_a_closed_terminal_stops_everything_in_order(tmp_path: Path) -> None:
    with at_a_terminal(tmp_path) as (job, screen):
        job.seats(0, 2)
        processes = family(job)
        os.close(screen)
        assert job.ended() == 128 + signal.SIGHUP
        assert all_gone(processes)
        assert job.events()[-1]["result"]["reason"] == "stopped by SIGHUP"
