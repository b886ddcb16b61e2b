"""``tlaunch checkpoint diff``: what differs between two checkpoints."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from tlaunch.errors import InputError
from tlaunch.launcher.cli.flags import positional
from tlaunch.launcher.cli.printing import counted, draw, progress, say

_WHICH = "A checkpoint: PATH (the newest there), or PATH@STEP."


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffOptions:
    """``tlaunch checkpoint diff``."""

    first: str | None = positional("A", _WHICH)
    second: str | None = positional("B", _WHICH)


def diff(given: DiffOptions) -> int:
    """``tlaunch checkpoint diff``: 0 when they are equal, 1 when they differ, 2 when that cannot be said."""
    from tlaunch.checkpoint.comparing import compare, shared_tensors
    from tlaunch.checkpoint.errors import CheckpointError
    from tlaunch.checkpoint.opening import open_source
    from tlaunch.checkpoint.shown import differences

    if given.first is None or given.second is None:
        raise InputError("diff: expected two checkpoints, each as PATH or PATH@STEP")
    try:
        first, second = (open_source(*_at_step(word)) for word in (given.first, given.second))
        total = sum(first.tensors[name].size for name in shared_tensors(first, second))
        with progress("comparing", total) as told:
            found = compare(first, second, told)
    except CheckpointError as error:
        raise InputError(str(error)) from None  # whatever is wrong with them: they were not compared
    if found.differences:
        draw(differences(found.differences))
    by_checksum = f" ({found.unread} by their checksums alone)" if found.unread else ""
    say(f"equal: {counted(found.tensors, 'tensor')}{by_checksum}, {counted(found.values, 'value')}")
    say(f"different: {len(found.differences)}")
    return 1 if found.differences else 0


def _at_step(word: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+)@(\d{1,15})", word)
    if match is None or os.path.exists(word):  # noqa: PTH110 - Path.exists raises where the system refuses
        return word, None
    return match[1], int(match[2])
