"""What every rank of a node runs, and the files that belong to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class RankFiles:
    """The files of one rank in one generation: what it prints, and the torchelastic error file."""

    folder: Path

    @property
    def out(self) -> str:
        return str(self.folder / "stdout.log")

    @property
    def err(self) -> str:
        return str(self.folder / "stderr.log")

    @property
    def failure(self) -> str:
        return str(self.folder / "error.json")

    def clear(self) -> None:
        """Make the folder, and remove what a job before us in the same log directory has left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.out, self.err, self.failure):
            Path(path).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Program:
    """What every rank runs, from the agent's own command line, and where its output goes."""

    job: str
    argv: tuple[str, ...]
    module: bool
    start: Literal["fork", "fresh"]
    cwd: str
    env: Mapping[str, str]
    log_dir: Path
    gpus: bool

    def files(self, generation: int, rank: int) -> RankFiles:
        """Return where a rank's files are."""
        return RankFiles(self.log_dir / f"generation-{generation}" / f"rank-{rank}")
