"""Waiting for the ranks of other nodes, and committing when the last of them has written its part."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from tlaunch.checkpoint.commit import is_settled, settled_and_gone, try_commit, withdraw
from tlaunch.checkpoint.errors import CheckpointError, GivenUp
from tlaunch.checkpoint.files import Files
from tlaunch.checkpoint.layout import Address, rank_of

log = logging.getLogger(__name__)

DEADLINE = 600.0
"""Seconds that the parts of other ranks may take after our own."""

_SOONEST, _LATEST = 0.02, 1.0

FEW = 64
"""Up to so many ranks every saver looks whether all parts are there. With more only that of rank 0 does: each look
lists what all ranks have written, and who finds the last part reads them all."""

PATIENCE = 10.0
"""Seconds that others leave it to the saver of rank 0, and one more for each ``FEW`` ranks."""


Ended: TypeAlias = Callable[[CheckpointError | None], None]
"""Called once: with the error, or with ``None`` when the checkpoint is committed, by whichever saver."""


@dataclass(slots=True)
class _Open:
    files: Files
    address: Address
    world: int
    callers: list[tuple[int, Ended]] = field(default_factory=list)
    """The ranks whose parts we have written."""
    deadline: float = 0.0
    pause: float = _SOONEST
    next_look: float = 0.0
    takes_over: float = 0.0
    """When we look at everything though it is not ours to commit."""

    def is_ours(self, now: float) -> bool:
        """Whether we are to commit it when all parts are there."""
        return self.world <= FEW or now >= self.takes_over or any(rank == 0 for rank, _ in self.callers)

    def leave_it(self, now: float) -> None:
        """Leave it to the saver of rank 0 for a while: not all to the same moment."""
        spread = 1 + min(rank for rank, _ in self.callers) / self.world
        self.takes_over = now + spread * (PATIENCE + self.world / FEW)


class Commits:
    """Settles checkpoints in a thread of its own.

    A part that one of our trainers has written is noticed at once. Other nodes are heard of through the file system
    only, so that is looked at again and again, ever more slowly.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: dict[tuple[str, Address], _Open] = {}
        self._finishing = False
        self._thread = threading.Thread(target=self._run, name="commits", daemon=True)
        self._thread.start()

    def add(self, files: Files, address: Address, world: int, rank: int, ended: Ended) -> None:
        """Commit a checkpoint when all parts are there; call ``ended`` then, or when that failed.

        The part of ``rank`` has been written. When the checkpoint is given up, it is removed.
        """
        with self._changed:
            entry = self._open.setdefault((files.root, address), _Open(files, address, world))
            entry.callers.append((rank, ended))
            now = time.monotonic()
            entry.deadline = now + DEADLINE
            entry.leave_it(now)
            entry.pause, entry.next_look = _SOONEST, 0.0
            self._changed.notify()

    def finish(self) -> None:
        """Look once more at what is open, give up what is not complete, and end.

        Whoever writes the last part looks after that, so that nobody has to wait for it.
        """
        with self._changed:
            self._finishing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._finishing:
                    break
                now = time.monotonic()
                first = min((entry.next_look for entry in self._open.values()), default=None)
                if first is None or first > now:
                    self._changed.wait(None if first is None else first - now)
                    continue
                due = [(key, entry) for key, entry in self._open.items() if entry.next_look <= now]
                for _, entry in due:
                    entry.pause = min(entry.pause * 2, _LATEST)
                    entry.next_look = now + entry.pause
            for key, entry in due:
                self._look(key, entry)
        for key, entry in list(self._open.items()):
            self._look(key, entry, last=True)

    def _look(self, key: tuple[str, Address], entry: _Open, *, last: bool = False) -> None:
        error: CheckpointError | None = None
        try:
            if not self._settled(entry, last=last):
                if not last and time.monotonic() < entry.deadline:
                    return
                late = "when the saver ended" if last else f"within {DEADLINE:g} s"
                error = CheckpointError(_who_is_missing(entry, late=late))
        except CheckpointError as failed:
            error = failed
        except Exception as unforeseen:  # this thread serves other checkpoints too
            log.exception("step %d", entry.address.step)
            error = CheckpointError(f"{entry.files.root}: step {entry.address.step}: {unforeseen!r}")
        with self._changed:
            del self._open[key]  # from here on, whoever comes late makes a new entry
        for rank, ended in entry.callers:
            try:
                if isinstance(error, GivenUp):  # what a newer writer came in between may be committed all the same
                    withdraw(entry.files, entry.address, rank)
                ended(error)
            except Exception:
                log.exception("step %d, rank %d", entry.address.step, rank)

    @staticmethod
    def _settled(entry: _Open, *, last: bool) -> bool:
        now = time.monotonic()
        if not last and not entry.is_ours(now):
            return is_settled(entry.files, entry.address, entry.callers[0][0])
        entry.leave_it(now)
        return try_commit(entry.files, entry.address, entry.world) or settled_and_gone(entry.files, entry.address)


def _who_is_missing(entry: _Open, *, late: str) -> str:
    there = {rank_of(name) for name in entry.files.names(entry.address.folder)}
    missing = [rank for rank in range(entry.world) if rank not in there]
    first = f", first of them rank {missing[0]}" if missing else ""
    return (
        f"{entry.files.root}: step {entry.address.step} is not committed: {late} "
        f"{len(missing)} of {entry.world} ranks have not written their part{first}"
    )
