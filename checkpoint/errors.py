"""What can be wrong with a checkpoint."""

from __future__ import annotations

from tlaunch.errors import InputError, TlaunchError


class CheckpointError(TlaunchError):
    """A checkpoint could not be written, found or read."""


class Unusable(CheckpointError, InputError):
    """What the user named or passed cannot be used: no checkpoint, a newer format, a value without a representation."""


class Damaged(CheckpointError):
    """A committed checkpoint is not what was written: a file is missing, too short, or its bytes have changed."""


class Superseded(CheckpointError):
    """A newer writer has taken over the path. What this one had not yet committed stays uncommitted."""


class GivenUp(CheckpointError):
    """A rank does not take part in a checkpoint, which therefore cannot be committed. ``skipped``: on purpose."""

    def __init__(self, message: str, *, skipped: bool = False) -> None:
        super().__init__(message)
        self.skipped = skipped
