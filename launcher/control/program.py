"""What every rank of a node runs, and the files that belong to one."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

LEAST_SPACE = 1 << 20
"""Bytes. With less than that left in the log directory, what is printed is not kept: a full disk ends no job."""


@dataclass(frozen=True, slots=True)
class RankFiles:
    """The files of one rank in one generation: what it prints, the torchelastic error file, and where it stands."""

    folder: Path
    kept: bool = True
    """Whether what it prints is kept at all."""

    @property
    def out(self) -> str:
        return str(self.folder / "stdout.log") if self.kept else os.devnull

    @property
    def err(self) -> str:
        return str(self.folder / "stderr.log") if self.kept else os.devnull

    @property
    def failure(self) -> str:
        return str(self.folder / "error.json")

    @property
    def stack(self) -> str:
        """Where it answers ``STACK_SIGNAL``: the latest answer only."""
        return str(self.folder / "stack.log") if self.kept else os.devnull

    def prepared(self) -> RankFiles:
        """Make the folder, and remove what a job before us in the same log directory has left in it.

        What this returns keeps nothing if there is no space.
        """
        if not _has_room(self.folder):
            return replace(self, kept=False)
        for path in (self.out, self.err, self.failure, self.stack):
            Path(path).unlink(missing_ok=True)
        return self


def _has_room(folder: Path) -> bool:
    """Make a folder; false where the disk is full. Raises ``OSError`` for any other reason."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        space = os.statvfs(folder)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return False
        raise
    return space.f_bavail * space.f_frsize >= LEAST_SPACE


@dataclass(frozen=True, slots=True)
class Program:
    """What every rank runs, from the agent's own command line, and where its output goes.

    ``asked``: whether ranks may be asked for their stacks.
    """

    job: str
    argv: tuple[str, ...]
    module: bool
    start: Literal["fork", "fresh"]
    cwd: str
    env: Mapping[str, str]
    log_dir: Path
    gpus: bool
    asked: bool = False

    def files(self, generation: int, rank: int) -> RankFiles:
        """Return where a rank's files are."""
        return RankFiles(_folder(self.log_dir, generation) / f"rank-{rank}")


def rendezvous_log(log_dir: Path, generation: int) -> str:
    """Return where the store of a generation prints to; its folder is there then."""
    folder = _folder(log_dir, generation)
    return str(folder / "rendezvous.log") if _has_room(folder) else os.devnull


def _folder(log_dir: Path, generation: int) -> Path:
    return log_dir / f"generation-{generation}"
