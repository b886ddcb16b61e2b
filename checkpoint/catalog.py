"""Which checkpoints there are, and which of them are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlaunch.checkpoint.absence import is_there
from tlaunch.checkpoint.errors import Damaged, Unusable
from tlaunch.checkpoint.files import DRAFT, TRASH, Files, why
from tlaunch.checkpoint.generations import refuse_single
from tlaunch.checkpoint.layout import METADATA, SUFFIX, Address, address_of
from tlaunch.checkpoint.manifest import MAX_BYTES, Manifest, from_bytes


@dataclass(frozen=True, slots=True)
class Keep:
    """Which committed checkpoints are kept: the ``last`` so many, and each whose step is a multiple of ``every``.

    The newest one is always kept. ``every=0`` keeps no other.
    """

    last: int = 3
    every: int = 0

    def __post_init__(self) -> None:
        counts = type(self.last) is type(self.every) is int
        if not counts or self.last < 1 or self.every < 0:
            raise Unusable(f"keep: expected last >= 1 and every >= 0, got {self.last} and {self.every}")

    def superfluous(self, committed: Sequence[Address]) -> list[Address]:
        """Return those that are not kept, of all that are committed."""
        old = sorted(committed)[: -self.last]
        return [address for address in old if not self.every or address.step % self.every]


def committed(files: Files) -> list[Address]:
    """Return the committed checkpoints, the newest last."""
    try:
        return [address for address in _addresses(files) if is_there(files, address.manifest)]
    except OSError as error:
        raise why(error, "listing checkpoints", files.root) from error


def folders(files: Files) -> list[tuple[Address, list[str]]]:
    """Return what could be a checkpoint, the newest last, with the names of its files, of which there may be many."""
    try:
        return [(address, files.names(address.folder)) for address in _addresses(files)]
    except OSError as error:
        raise why(error, "listing checkpoints", files.root) from error


def _addresses(files: Files) -> list[Address]:
    return sorted(address for name in files.names() if (address := address_of(name)) is not None)


def find(files: Files, step: int | None = None) -> Address | None:
    """Return the newest committed checkpoint, or the newest of one step; ``None`` when there is none at all.

    Raises:
        Unusable: there are checkpoints, but none of this step, or only one of another program; or the path is that of
            a single one.
    """
    found = newest(files, step)
    if found is None and (foreign := _foreign(files)) is not None:
        raise Unusable(
            f"{files.root}: holds a checkpoint of another format ({foreign}) and none of ours; tlaunch.checkpoint.load "
            "reads it; expected a folder of its own to save to"
        )
    return found


def newest(files: Files, step: int | None = None) -> Address | None:
    """Do the same, whatever else is there.

    Raises:
        Unusable: there are checkpoints, but none of this step; or the path is that of a single one.
    """
    try:
        refuse_single(files)
    except OSError as error:
        raise why(error, "listing checkpoints", files.root) from error
    found = committed(files)
    fitting = [address for address in found if step is None or address.step == step]
    if fitting:
        return fitting[-1]
    if step is not None:
        steps = ", ".join(str(step) for step in sorted({address.step for address in found})) or "none at all"
        raise Unusable(f"{files.root}: no checkpoint of step {step}; there are {steps}")
    return None


def _foreign(files: Files) -> str | None:
    """Return the name of a file by which another program's checkpoint is known, if there is one."""
    try:
        names = files.names()
    except OSError as error:
        raise why(error, "listing checkpoints", files.root) from error
    own = (DRAFT, TRASH)
    known = (name for name in names if name == METADATA or name.endswith((SUFFIX, f"{SUFFIX}.index.json")))
    return next((name for name in known if not name.startswith(own)), None)


def manifest_of(files: Files, address: Address) -> Manifest:
    """Read the manifest of a committed checkpoint.

    Raises:
        Damaged: it is not what was written, or belongs to another checkpoint.
    """
    where = f"{files.root}/{address.manifest}"
    try:
        manifest = from_bytes(files.read(address.manifest, MAX_BYTES + 1), where)
    except OSError as error:
        raise why(error, "reading a manifest", where) from error
    if (manifest.generation, manifest.step) != (address.generation, address.step):
        raise Damaged(f"{where}: is that of step {manifest.step} of generation {manifest.generation}")
    if not manifest.is_whole:
        raise Damaged(f"{where}: holds the ranks {manifest.ranks}, expected all of {manifest.world}")
    return manifest


def prune(files: Files, keep: Keep) -> list[Address]:
    """Remove the checkpoints that are not kept, and return them.

    What is older than all that is kept, and was given up by a rank that is absent from it, goes too.
    """
    there = committed(files)
    superfluous = keep.superfluous(there)
    oldest = min(set(there).difference(superfluous), default=None)
    try:
        given_up = [
            address
            for address in _addresses(files)
            if oldest is not None and address < oldest and address not in there and is_there(files, address.absence)
        ]
    except OSError as error:
        raise why(error, "listing checkpoints", files.root) from error
    for address in (*superfluous, *given_up):
        try:
            files.remove(address.folder)
        except OSError as error:
            raise why(error, "removing a checkpoint", f"{files.root}/{address.folder}") from error
    return superfluous
