"""What the stack of a process tells: where in the script it stands, and whether it waits there for other ranks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tlaunch.launcher.core.symptoms import place

KEPT_STACK = 4_000
"""How many characters are kept of a stack as text: its end, where the process stands."""

_DUMPED = "(most recent call first):"
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)
_LAUNCHER = re.compile(r"/launcher/elastic/\w+\.py$|^<frozen runpy>$")
_TORCH = re.compile(r"/torch/(?!utils/data/)")
_WAITING = re.compile(r"/torch/(distributed/(?!checkpoint/)|nn/parallel/distributed\.py$|autograd/|cuda/)")
"""From where in torch a process waits for its peers. Its backward pass does, and so does what waits for the GPU: with
NCCL a collective returns at once, and whoever needs its result waits for the stream that it stands in."""
_CALLS = re.compile(r"/torch/_ops\.py$")


@dataclass(frozen=True, slots=True)
class Frame:
    """One call: the ``line`` of ``file`` that it has come to, in ``function``."""

    file: str
    line: int
    function: str


Stack = tuple[Frame, ...]
"""The calls of one thread, innermost first; empty where it is not known."""


def parse(dump: str) -> Stack:
    """Read the last stack that ``faulthandler`` has written, without the frames that are the launcher's."""
    found = _FRAME.finditer(dump, max(0, dump.rfind(_DUMPED)))
    frames = [Frame(frame["file"], int(frame["line"]), frame["function"]) for frame in found]
    while frames and _LAUNCHER.search(frames[-1].file):
        del frames[-1]
    return tuple(frames)


def as_text(stack: Stack) -> str:
    """Return a stack as Python writes it in a traceback, the innermost call last."""
    lines = [f'  File "{frame.file}", line {frame.line}, in {frame.function}\n' for frame in reversed(stack)]
    return "Stack (most recent call last):\n" + "".join(lines)[-KEPT_STACK:]


def stands_at(stack: Stack) -> str | None:
    """Return ``file:line in function`` of the innermost call that is not a library's; ``None`` where none is known."""
    return place(as_text(stack))


def waits_in(stack: Stack) -> str | None:
    """Return the function of torch, as the script has called it, in which a process waits for other ranks.

    ``None`` when it is elsewhere: then others may be waiting for it.
    """
    inner = next((index for index, frame in enumerate(stack) if not _CALLS.search(frame.file)), len(stack))
    if inner == len(stack) or not _WAITING.search(stack[inner].file):
        return None
    called = stack[inner].function
    for frame in stack[inner:]:
        if not _TORCH.search(frame.file):
            break
        called = called if frame.function == "wrapper" else frame.function
    return called
