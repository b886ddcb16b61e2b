"""System calls that fail, or kill who makes them: strace, which has to be installed for these tests."""

from __future__ import annotations

import shutil
from pathlib import Path


def strace(*options: str, log: Path) -> list[str]:
    """Return how to begin a command so that it runs under strace, or strace joins a process."""
    program = shutil.which("strace")
    assert program, "strace is missing, without which this cannot be tested (Debian, Ubuntu: apt install strace)"
    return [program, "-f", "-qq", "-o", str(log), *options]
