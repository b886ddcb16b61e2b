"""How a rank's process ended, in the core's terms: when, on a clock that nobody sets, and with what last words."""

from __future__ import annotations

import os
import socket
from itertools import takewhile
from pathlib import Path

from tlaunch.launcher.control.program import RankFiles
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.process import messages

LONGEST_MESSAGE = 2_000
LONGEST_TRACEBACK = 16_384
LONGEST_OUTPUT = 2_000
"""Characters, of which a document in the store has room for so many in each of 8 slots."""

LAST_LINES = 20
"""How many of the lines that a rank printed are kept."""

_READ = 16_384
_TRACEBACK = "Traceback (most recent call last):"
_CPP_FRAME = "frame #"
_SAYS_NOTHING = ("To enable traceback see:", "Signal ")
"""How torchelastic's own messages begin, which say no more than the code or the signal does."""


def describe(ended: messages.Exit, files: RankFiles, *, started: float, noticed: float, slots: int = 8) -> Exit:
    """Return how a process ended that ran from ``started`` until it was ``noticed``, on the monotonic clock.

    ``slots``: how many of the node's slots have to share a report.
    """
    share = min(1.0, 8 / slots)
    said = None if ended.message is None or ended.message.startswith(_SAYS_NOTHING) else ended.message
    words = "" if ended.ok else last_words(files, recorded=ended.traceback is not None)
    traceback = ended.traceback[-int(LONGEST_TRACEBACK * share) :] if ended.traceback else None
    failed_at = _failed_at(ended.error_file, started, noticed)
    return Exit(
        code=ended.code,
        signal=ended.signal,
        message=short(said, share),
        traceback=traceback,
        output=words[-int(LONGEST_OUTPUT * share) :] or None,
        host=socket.gethostname(),
        time=failed_at,
        ran=failed_at - started,
    )


def not_started(error: Exception, now: float) -> Exit:
    """Return what stands for the end of a process that could not be started."""
    return Exit(message=short(f"could not be started: {error}"), host=socket.gethostname(), time=now)


def short(message: str | None, share: float = 1.0) -> str | None:
    """Keep the beginning of a message."""
    return None if message is None else message[: int(LONGEST_MESSAGE * share)]


def _failed_at(error_file: str | None, started: float, noticed: float) -> float:
    """Return when a process failed, to tell causes from consequences.

    The error file is written as soon as the script has failed. Until its process has ended more time passes, in which
    its peers notice, fail and may end before it. How old the file is, its own file system says: its clock may be that
    of a file server. Should somebody set that clock just now, the result is wrong, but never before the process began.
    """
    try:
        written = os.stat(error_file).st_mtime if error_file else None  # noqa: PTH116 - often there is no file
        if written is None or error_file is None:
            return noticed
        folder = Path(error_file).parent
        os.utime(folder)
        age = folder.stat().st_mtime - written
    except OSError:
        return noticed
    return min(max(started, noticed - age), noticed)


def last_words(files: RankFiles, *, recorded: bool) -> str:
    """Return the last lines on standard error, or else on standard output.

    A traceback that is ``recorded`` is left out, and so are the frames of C++ under torch's warnings.
    """
    printed = _tail(files.err).splitlines()
    if recorded:
        printed = list(takewhile(lambda line: _TRACEBACK not in line, printed))  # torch puts the rank before it
    lines = [line.rstrip() for line in printed if line.strip() and not line.startswith(_CPP_FRAME)]
    if not lines and not recorded:
        lines = [line.rstrip() for line in _tail(files.out).splitlines() if line.strip()]
    return "\n".join(lines[-LAST_LINES:])


def _tail(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _READ))
            return file.read(_READ).decode(errors="replace")
    except OSError:
        return ""
