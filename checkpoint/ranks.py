"""What the ranks of a run agree on, once: when a checkpointer is made, and when the shape of the state changes.

Nothing here is called while a checkpoint is saved.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch.distributed as dist

from tlaunch.checkpoint.errors import CheckpointError, Damaged, Unusable

T = TypeVar("T")


class Ranks:
    """The ranks that save together: those of the default process group, or one alone."""

    def __init__(self) -> None:
        """Find out who takes part. Collective: all ranks of the default process group must do this together.

        Raises:
            Unusable: there are several ranks, and no process group to agree in.
        """
        self._group: dist.ProcessGroup | None = None
        if dist.is_available() and dist.is_initialized():
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
            if self.world > 1:
                # Of its own, so that what is agreed on here does not meet what the training script sends.
                group = dist.new_group(backend="gloo")
                assert isinstance(group, dist.ProcessGroup)  # it is a number for those who are not in it
                self._group = group
            return
        self.rank, self.world = 0, 1
        if (world := os.environ.get("WORLD_SIZE", "")) not in ("", "0", "1"):
            raise Unusable(
                f"WORLD_SIZE is {world} and there is no process group; expected "
                "torch.distributed.init_process_group() before checkpoints are saved or loaded"
            )

    def everybody(self, mine: T) -> list[T]:
        """Tell all ranks something, and return what each of them has said, by rank."""
        if self._group is None:
            return [mine]
        said: list[T | None] = [None] * self.world
        try:
            dist.all_gather_object(said, mine, group=self._group)
        except RuntimeError as error:
            raise CheckpointError(f"the ranks could not agree, as a checkpoint needs at times: {error}") from error
        return cast("list[T]", said)

    def together(self, do: Callable[[], T], failed: str) -> list[T]:
        """Do something on all ranks, and return by rank what came of it. When it fails on one of them, it fails on all.

        Raises:
            CheckpointError: after ``failed``, what the first rank where it failed says; of the class that it has there.
        """
        done: list[T] = []
        error: Exception | None = None
        try:
            done.append(do())
        except Exception as raised:  # noqa: BLE001 - the others wait for us
            error = raised
        said = self.everybody((done, _told(error)))
        if error is not None:
            raise error
        for _, problem in said:
            if problem is not None:
                kind, text = problem
                raise kind(f"{failed}: {text}")
        return [one for there, _ in said for one in there]

    def from_first(self, make: Callable[[], T]) -> T:
        """Have rank 0 make something, and return it on every rank. When it fails there, it fails everywhere.

        Raises:
            CheckpointError: with what rank 0 says.
        """
        if self._group is None:
            return make()
        made: T | None = None
        error: CheckpointError | None = None
        if self.rank == 0:
            try:
                made = make()
            except CheckpointError as failed:
                error = failed
            except Exception as failed:  # noqa: BLE001 - the others wait for us
                error = CheckpointError(f"rank 0: {failed!r}")
        box: list[object] = [made, error]
        try:
            dist.broadcast_object_list(box, src=0, group=self._group)
        except RuntimeError as failed:
            raise CheckpointError(f"the ranks could not agree, as a checkpoint needs at times: {failed}") from failed
        if isinstance(box[1], CheckpointError):
            raise box[1]
        return cast("T", box[0])

    def close(self) -> None:
        """Let go of the group."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None


def _told(error: Exception | None) -> tuple[type[CheckpointError], str] | None:
    """Return an error so that other ranks can raise it."""
    if error is None:
        return None
    kind = next((kind for kind in (Damaged, Unusable) if isinstance(error, kind)), CheckpointError)
    return kind, str(error) or repr(error)


@dataclass(frozen=True, slots=True)
class Node:
    """Where a rank runs: ranks with equal ones share memory and a folder for sockets."""

    host: str
    boot: str
    tmp: tuple[int, int]

    @classmethod
    def here(cls) -> Node:
        """Return that of this process."""
        stat = Path(tempfile.gettempdir()).stat()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(socket.gethostname(), boot, (stat.st_dev, stat.st_ino))
