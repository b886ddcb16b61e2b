"""Taking a path over from the writer before."""

from __future__ import annotations

import logging

from tlaunch.checkpoint.commit import read_part, try_commit
from tlaunch.checkpoint.errors import CheckpointError
from tlaunch.checkpoint.files import Files, why
from tlaunch.checkpoint.generations import clean, newest_generation, take_generation
from tlaunch.checkpoint.layout import MANIFEST, Address, address_of, rank_of
from tlaunch.checkpoint.values import Json

log = logging.getLogger(__name__)


def take_over(files: Files, owner: dict[str, Json]) -> int:
    """Become the newest writer, and return its generation.

    What the newest of the writers before has left complete is committed first; what else they have left is removed.
    ``owner`` tells others who we are. Call this once for all ranks of a run.

    Raises:
        Unusable: the path is that of a single checkpoint.
        CheckpointError: it cannot be written to.
    """
    finish_earlier(files)
    generation = take_generation(files, owner)
    for name in clean(files, generation):
        log.info("removed %s, which an earlier writer has left", name)
    return generation


def finish_earlier(files: Files) -> list[Address]:
    """Commit what the newest writer has left with the parts of all its ranks, and return it."""
    try:
        newest = newest_generation(files)
        addresses = [address for name in files.names() if (address := address_of(name)) is not None]
    except OSError as error:
        raise why(error, "taking the path over", files.root) from error
    finished = []
    for address in addresses:
        if address.generation != newest:
            continue
        try:
            if (world := _world_of(files, address)) is not None and try_commit(files, address, world):
                finished.append(address)
        except (CheckpointError, OSError) as error:
            log.warning("what an earlier writer has left is not committed: %s", error)
    return finished


def _world_of(files: Files, address: Address) -> int | None:
    """Return how many ranks a checkpoint that is not committed is made of, if any of them has written its part."""
    names = files.names(address.folder)
    rank = next((rank for name in names if (rank := rank_of(name)) is not None), None)
    if MANIFEST in names or rank is None:
        return None
    return read_part(files, address, rank).world
