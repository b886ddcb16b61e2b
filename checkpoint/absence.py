"""How a rank says that it does not take part in a checkpoint, so that the others need not wait for it.

A rank writes either its part or this note, never both. So what is given up can never be committed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tlaunch.checkpoint.errors import GivenUp
from tlaunch.checkpoint.files import Files, why
from tlaunch.checkpoint.layout import MANIFEST, Address, absent_of, part_name

_BYTES = 16 << 10


def give_up(files: Files, address: Address, rank: int, reason: str) -> bool:
    """Say that this rank writes no part, and why: an empty ``reason`` stands for a step that was skipped.

    Returns whether that was said: not when the rank's part is there, which others may be about to use.

    Raises:
        CheckpointError: it could not be written.
    """
    try:
        names = files.names(address.folder)
        if MANIFEST in names or part_name(rank) in names:
            return False
        files.make(address.folder)
        files.write(address.absence(rank), [json.dumps({"reason": reason[:4000]}).encode()])
    except OSError as error:
        raise why(error, "giving a step up", f"{files.root}/{address.absence(rank)}") from error
    return True


def refuse_if_absent(files: Files, address: Address, names: Sequence[str]) -> None:
    """Do nothing when no rank is absent. ``names``: what is in the folder.

    Raises:
        GivenUp: a rank is.
    """
    absent = [rank for name in names if (rank := absent_of(name)) is not None]
    if not absent:
        return
    rank = min(absent)
    reason = _reason(files, address, rank)
    told = f"rank {rank} has skipped it" if reason == "" else f"rank {rank} could not write its part: {reason}"
    raise GivenUp(f"{files.root}: step {address.step} is not committed: {told}", skipped=reason == "")


def _reason(files: Files, address: Address, rank: int) -> str:
    try:
        said = json.loads(files.read(address.absence(rank), _BYTES))
    except (OSError, ValueError, RecursionError):
        said = None
    return str(said["reason"]) if isinstance(said, dict) and "reason" in said else "its reason cannot be read"
