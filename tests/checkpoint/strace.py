"""System calls that fail, or kill who makes them: strace, which has to be installed for these tests."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


def strace(*options: str, log: Path) -> list[str]:
    """Return how to begin a command so that it runs under strace."""
    return [_program(), "-f", "-qq", "-o", str(log), *options]


@contextlib.contextmanager
def joined(thread: int, *options: str) -> Iterator[None]:
    """Have strace at a thread of another process for a while; with ``-f`` at all of them."""
    command = [_program(), *options, "-p", str(thread)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "attached" in said, said
        try:
            yield
        finally:
            process.terminate()  # lets go of the other one
            process.stderr.read()


def _program() -> str:
    program = shutil.which("strace")
    assert program, "strace is missing, without which this cannot be tested (Debian, Ubuntu: apt install strace)"
    return program
