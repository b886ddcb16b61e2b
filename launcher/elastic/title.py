"""The command line that ``ps``, ``top`` and ``nvidia-smi`` show for this process.

The kernel shows the memory in which it once put the arguments. What is written there is shown as one text up to its
first zero byte if the last byte of that memory is not zero; see ``get_mm_cmdline`` in Linux's fs/proc/base.c.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

# Fields of /proc/self/stat, counted from the one after the process's name, which may hold blanks; see proc(5).
_ARG_START, _ARG_END = 48 - 3, 49 - 3


def set_title(title: str) -> None:
    """Show ``title``, cut to as many bytes as the original command line has."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    room = end - start
    if room < 2:  # hidden from us
        return
    text = title.encode(errors="surrogateescape").replace(b"\0", b" ")[: room - 2]
    ctypes.memmove(start, text.ljust(room - 1, b"\0") + b".", room)
