"""How a rank says that it does not take part in a checkpoint, so that the others need not wait for it.

A rank writes either its part or this note, never both. So what is given up can never be committed. There is one note
for all of them, under a name that everybody knows: nobody has to list what thousands of ranks have written.
"""

from __future__ import annotations

import errno
import json

from tlaunch.checkpoint.errors import GivenUp
from tlaunch.checkpoint.files import Files, why
from tlaunch.checkpoint.layout import Address

_BYTES = 16 << 10


def is_there(files: Files, name: str) -> bool:
    """Whether there is a file of this name. Opens it, as network file systems look anew then.

    Raises:
        OSError: that cannot be said.
    """
    try:
        files.read(name, 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ESTALE:
            return False
        raise
    return True


def give_up(files: Files, address: Address, rank: int, reason: str) -> bool:
    """Say that this rank writes no part, and why: an empty ``reason`` stands for a step that was skipped.

    Returns whether it stays out: not when its part is there, which others may be about to use.

    Raises:
        CheckpointError: it could not be written.
    """
    try:
        if is_there(files, address.manifest) or is_there(files, address.part(rank)):
            return False
        files.make(address.folder)
        if not is_there(files, address.absence):  # the first reason is the cause
            files.write(address.absence, [json.dumps({"rank": rank, "reason": reason[:4000]}).encode()])
    except OSError as error:
        raise why(error, "giving a step up", f"{files.root}/{address.absence}") from error
    return True


def refuse_if_absent(files: Files, address: Address) -> None:
    """Do nothing when no rank is absent.

    Raises:
        GivenUp: a rank is.
        OSError: that cannot be said.
    """
    if not is_there(files, address.absence):
        return
    rank, reason = _said(files, address)
    told = f"{rank} has skipped it" if reason == "" else f"{rank} could not write its part: {reason}"
    raise GivenUp(f"{files.root}: step {address.step} is not committed: {told}", skipped=reason == "")


def _said(files: Files, address: Address) -> tuple[str, str]:
    try:
        said = json.loads(files.read(address.absence, _BYTES))
        return f"rank {int(said['rank'])}", str(said["reason"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "a rank", "its reason cannot be read"
