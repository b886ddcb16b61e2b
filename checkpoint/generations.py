"""Which writer is the newest: a number for each run, taken by creating a file that only one can create."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tlaunch.checkpoint.errors import Superseded, Unusable
from tlaunch.checkpoint.files import DRAFT, TRASH, Files, why
from tlaunch.checkpoint.layout import MANIFEST, Address, address_of, generation_file, generation_of, rank_of
from tlaunch.checkpoint.values import Json

_OWNER_BYTES = 4096


def newest_generation(files: Files) -> int:
    """Return the highest generation that was taken, 0 for none."""
    return max((taken for name in files.names() if (taken := generation_of(name)) is not None), default=0)


def take_generation(files: Files, owner: dict[str, Json]) -> int:
    """Become the newest writer. ``owner`` tells others who that is. Call this once for all ranks of a run.

    Raises:
        Unusable: the path is that of a single checkpoint, or of a file.
        CheckpointError: it cannot be written to.
    """
    data = json.dumps(owner).encode()
    try:
        refuse_single(files)
        try:
            files.make("")
        except (FileExistsError, NotADirectoryError):
            raise Unusable(f"{files.root}: a file is in the way; expected a folder, or where one can be made") from None
        generation = newest_generation(files) + 1
        while not _taken(files, generation, data):
            generation += 1  # somebody else was faster
    except OSError as error:
        raise why(error, "taking the path over", files.root) from error
    return generation


def refuse_single(files: Files) -> None:
    """Refuse a path that is one checkpoint instead of the folder of all.

    Raises:
        Unusable: it is.
    """
    if MANIFEST in files.names():
        raise Unusable(f"{files.root}: this is one checkpoint; expected the folder in which a job keeps all of its own")


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
    except (OSError, ValueError, RecursionError):
        return "unknown"
    return ", ".join(f"{key} {value}" for key, value in owner.items()) if isinstance(owner, dict) else "unknown"


def refuse_if_superseded(files: Files, address: Address) -> None:
    """Do nothing for the newest writer.

    Raises:
        Superseded: there is a newer one.
    """
    newest = newest_generation(files)
    if newest > address.generation:
        raise Superseded(
            f"{files.root}: step {address.step} is not committed: generation {newest} ({owner_of(files, newest)}) "
            f"has taken over from generation {address.generation}"
        )


def clean(files: Files, generation: int) -> list[str]:
    """Remove what writers before ``generation`` have left behind, and return the names of what was removed.

    Such a writer cannot commit any more. What it has committed stays.
    """
    try:
        left = [found for name in files.names() for found in _left(files, name, generation)]
    except OSError as error:
        raise why(error, "cleaning up", files.root) from error
    for name in left:
        try:
            files.remove(name)
        except OSError as error:
            raise why(error, "removing what is not needed any more", f"{files.root}/{name}") from error
    return left


def _left(files: Files, name: str, generation: int) -> Iterator[str]:
    """Yield what of this name, or in the folder of this name, is to go."""
    address = address_of(name)
    if address is not None and address.generation < generation:
        inside = files.names(name)
        if MANIFEST not in inside:
            yield name
        else:
            yield from (f"{name}/{file}" for file in inside if file.startswith(DRAFT) or rank_of(file) is not None)
    elif name.startswith(TRASH) or _taken_by(name, generation) < generation:
        yield name


def _taken_by(name: str, otherwise: int) -> int:
    """Return the generation that a file at the top is about: a taken one, or somebody's draft of it."""
    plain = name.removeprefix(DRAFT).partition("-")[2] if name.startswith(DRAFT) else name
    taken = generation_of(plain)
    return otherwise if taken is None else taken
