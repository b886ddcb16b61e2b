"""The entry point: every way to end is an exit code, and every error of the user one line."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NoReturn

from tlaunch.errors import TlaunchError
from tlaunch.launcher.cli.printing import printable
from tlaunch.launcher.store.protocol import StoreUnavailable


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. ``words`` are those after the program's name."""
    sys.exit(exit_code(sys.argv[1:] if words is None else words))


def exit_code(words: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    from tlaunch.launcher.cli.app import parse

    try:
        return _flushed(parse(words)())
    except TlaunchError as error:
        # A running job outlives an outage of its store, so that this can only be one that was named wrongly.
        return _say(str(error), 2 if isinstance(error, StoreUnavailable) else error.exit_code)
    except KeyboardInterrupt:  # before the job had started: once it has, it handles signals itself
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes on the way out.
        _say_no_more()
        return 141
    except Exception as error:  # noqa: BLE001  a bug of ours: the user gets one line, the file gets the rest
        return _internal(error)


def _flushed(code: int) -> int:
    """Flush what was printed. When the terminal was closed, the exit code is what it would be."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        _say_no_more()
    return code


def _say_no_more() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _say(message: str, code: int) -> int:
    sys.stderr.write(f"tlaunch: {printable(' '.join(message.split()))}\n")
    return code


def _internal(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="tlaunch-error-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return _say(f"internal error: {type(error).__name__}: {error}; the traceback is in {file.name}", 1)
