"""How a checkpoint comes to be, without any rank talking to another.

Each rank writes its shard, then its part of the manifest. Whoever finds the parts of all ranks there merges them and
writes the manifest, which commits the checkpoint; when two find that at once, they write the same bytes. Killed at any
point, what was committed before is untouched, and what was not is invisible.

A writer takes a *generation*, a number above all that were taken before. From then on older writers cannot commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tlaunch.checkpoint.errors import Damaged, Superseded
from tlaunch.checkpoint.files import TRASH, Files, why
from tlaunch.checkpoint.layout import MANIFEST, Address, address_of, generation_file, generation_of, rank_of, shard_name
from tlaunch.checkpoint.manifest import MAX_BYTES, Manifest, Tensor, from_bytes, merge, to_bytes
from tlaunch.checkpoint.shard import Piece, arrange, described, write_file
from tlaunch.checkpoint.values import Json

_OWNER_BYTES = 4096


def newest_generation(files: Files) -> int:
    """Return the highest generation that was taken, 0 for none."""
    return max((taken for name in files.names() if (taken := generation_of(name)) is not None), default=0)


def take_generation(files: Files, owner: dict[str, Json]) -> int:
    """Become the newest writer. ``owner`` tells others who that is. Call this once for all ranks of a run."""
    data = json.dumps(owner).encode()
    try:
        files.make("")
        generation = newest_generation(files) + 1
        while not _taken(files, generation, data):
            generation += 1  # somebody else was faster
    except OSError as error:
        raise why(error, "taking the path over", files.root) from error
    return generation


def _taken(files: Files, generation: int, data: bytes) -> bool:
    try:
        files.create(generation_file(generation), data)
    except FileExistsError:
        return False
    return True


def owner_of(files: Files, generation: int) -> str:
    """Say who took a generation, as far as that can be read."""
    try:
        owner = json.loads(files.read(generation_file(generation), _OWNER_BYTES))
    except (OSError, ValueError):
        return "unknown"
    return ", ".join(f"{key} {value}" for key, value in owner.items()) if isinstance(owner, dict) else "unknown"


def write_part(files: Files, part: Manifest, pieces: Sequence[Piece]) -> None:
    """Write one rank's tensors and its part of the manifest. ``part`` comes without files and tensors.

    Raises:
        CheckpointError: it could not be written.
    """
    layout = arrange(pieces)
    write_shard(files, part, described(layout.boxes), layout.header, *(piece.data for piece, _ in layout.boxes))


def write_shard(files: Files, part: Manifest, tensors: Mapping[str, Tensor], *buffers: bytes | memoryview) -> None:
    """Do the same where the bytes of the shard are there as they are, one buffer after the other.

    Raises:
        CheckpointError: it could not be written.
    """
    (rank,) = part.ranks
    address = Address(part.generation, part.step)
    name = shard_name(rank)
    try:
        files.make(address.folder)
        file = write_file(files, address.folder, name, *buffers)
    except OSError as error:
        raise why(error, "writing a shard", f"{files.root}/{address.folder}/{name}") from error
    try:
        files.write(address.part(rank), [to_bytes(replace(part, files=(file,), tensors=tensors))])
    except OSError as error:
        raise why(error, "writing a rank's part", f"{files.root}/{address.part(rank)}") from error


def try_commit(files: Files, address: Address, world: int) -> bool:
    """Commit a checkpoint if the parts of all ranks are there; true when it is committed, by whomever.

    Raises:
        Superseded: a newer writer has taken the path over.
        CheckpointError: the parts do not fit together, or the manifest could not be written.
    """
    names = files.names(address.folder)
    if MANIFEST in names:
        return True
    ranks = sorted(rank for name in names if (rank := rank_of(name)) is not None)
    if ranks != list(range(world)):
        return False
    try:
        parts = [_read_part(files, address, rank) for rank in ranks]
    except FileNotFoundError:
        # Another has committed meanwhile, and has removed the parts.
        return MANIFEST in files.names(address.folder)
    except OSError as error:
        raise why(error, "reading the ranks' parts", f"{files.root}/{address.folder}") from error
    commit(files, merge(parts))
    for rank in ranks:
        _remove(files, address.part(rank))
    return True


def commit(files: Files, manifest: Manifest) -> None:
    """Commit the checkpoint that a complete manifest describes.

    Raises:
        Superseded: a newer writer has taken the path over.
        CheckpointError: the manifest could not be written.
    """
    address = Address(manifest.generation, manifest.step)
    try:
        _refuse_if_superseded(files, address)
        files.write(address.manifest, [to_bytes(manifest)])
    except OSError as error:
        raise why(error, "committing", f"{files.root}/{address.manifest}") from error


def _read_part(files: Files, address: Address, rank: int) -> Manifest:
    where = f"{files.root}/{address.part(rank)}"
    part = from_bytes(files.read(address.part(rank), MAX_BYTES + 1), where)
    if (part.generation, part.step, part.ranks) != (address.generation, address.step, (rank,)):
        raise Damaged(f"{where}: holds step {part.step} of generation {part.generation}, ranks {part.ranks}")
    return part


def _refuse_if_superseded(files: Files, address: Address) -> None:
    newest = newest_generation(files)
    if newest > address.generation:
        raise Superseded(
            f"{files.root}: step {address.step} is not committed: generation {newest} ({owner_of(files, newest)}) "
            f"has taken over from generation {address.generation}"
        )


def clean(files: Files, generation: int) -> list[str]:
    """Remove what writers before ``generation`` have left uncommitted, and return the names of what was removed.

    Such a writer cannot commit any more.
    """
    removed = []
    for name in files.names():
        address = address_of(name)
        taken = generation_of(name)
        stale = address is not None and address.generation < generation and MANIFEST not in files.names(name)
        if stale or (taken is not None and taken < generation) or name.startswith(TRASH):
            removed.append(name)
    for name in removed:
        _remove(files, name)
    return removed


def _remove(files: Files, name: str) -> None:
    try:
        files.remove(name)
    except OSError as error:
        raise why(error, "removing what is not needed any more", f"{files.root}/{name}") from error
