"""How a checkpoint comes to be, without any rank talking to another.

Each rank writes its shard, then its part of the manifest. Whoever finds the parts of all ranks there merges them and
writes the manifest, which commits the checkpoint; when two find that at once, they write the same bytes. Killed at any
point, what was committed before is untouched, and what was not is invisible. A rank that cannot write its part, or
skips a step, leaves a note in its place (``absence``), so that nobody waits for it.

A writer takes a *generation*, a number above all that were taken before (``generations``). From then on older writers
cannot commit.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tlaunch.checkpoint.absence import is_there, refuse_if_absent
from tlaunch.checkpoint.catalog import committed
from tlaunch.checkpoint.errors import CheckpointError, Damaged
from tlaunch.checkpoint.files import Files, why
from tlaunch.checkpoint.generations import refuse_if_superseded
from tlaunch.checkpoint.layout import ABSENT, MANIFEST, Address, rank_of, shard_name
from tlaunch.checkpoint.manifest import MAX_BYTES, File, Manifest, Tensor, from_bytes, merge, to_bytes
from tlaunch.checkpoint.shard import Piece, arrange, described, write_file

log = logging.getLogger(__name__)

_MARGIN = 1 << 20
"""Bytes that are to stay free beside the tensors of a shard: for headers, parts and the manifest."""


def write_part(files: Files, part: Manifest, pieces: Sequence[Piece]) -> None:
    """Write one rank's tensors and its part of the manifest. ``part`` comes without files and tensors.

    What stands already from an earlier try is never written again: somebody may have read it, and be about to commit.

    Raises:
        Superseded: a newer writer has taken the path over.
        GivenUp: another rank does not take part.
        CheckpointError: it could not be written.
    """
    layout = arrange(pieces)
    write_shard(files, part, described(layout.boxes), layout.header, *(piece.data for piece, _ in layout.boxes))


def write_shard(files: Files, part: Manifest, tensors: Mapping[str, Tensor], *buffers: bytes | memoryview) -> None:
    """Do the same where the bytes of the shard are there as they are, one buffer after the other.

    Raises:
        Superseded: a newer writer has taken the path over.
        CheckpointError: it could not be written.
    """
    (rank,) = part.ranks
    address = Address(part.generation, part.step)
    try:
        if is_there(files, address.manifest) or is_there(files, address.part(rank)):
            return
        refuse_if_absent(files, address)
    except OSError as error:
        raise why(error, "looking for what is there", f"{files.root}/{address.folder}") from error
    file = write_buffers(files, address, rank, buffers)
    try:
        files.write(address.part(rank), [to_bytes(replace(part, files=(file,), tensors=tensors))])
    except OSError as error:
        raise _failed(files, address, error, "writing a rank's part", address.part(rank)) from error


def write_buffers(files: Files, address: Address, rank: int, buffers: Sequence[bytes | memoryview]) -> File:
    """Write one rank's shard, and return what its part says of it.

    Raises:
        Superseded: a newer writer has taken the path over.
        CheckpointError: it could not be written, or there is too little space for it.
    """
    where = address.shard(rank)
    try:
        refuse_if_superseded(files, address)
        files.make(address.folder)
        free, wanted = files.space(), sum(len(buffer) for buffer in buffers) + _MARGIN
        if free is not None and free < wanted:
            raise CheckpointError(f"{files.root}/{where}: {wanted} bytes are needed, and only {free} are free")
        return write_file(files, address.folder, shard_name(rank), *buffers)
    except OSError as error:
        raise _failed(files, address, error, "writing a shard", where) from error


def try_commit(files: Files, address: Address, world: int) -> bool:
    """Commit a checkpoint if the parts of all ranks are there; true when it is committed, by whomever.

    Raises:
        Superseded: a newer writer has taken the path over.
        GivenUp: a rank does not take part.
        CheckpointError: the parts do not fit together, or the manifest could not be written.
    """
    try:
        names = files.names(address.folder)
        if MANIFEST in names:
            files.settle(address.folder)  # whoever has written it may not have come to that yet
            return True
        if ABSENT in names:
            refuse_if_absent(files, address)
        ranks = sorted(rank for name in names if (rank := rank_of(name)) is not None)
        if not set(range(world)) <= set(ranks):
            return False
        try:
            parts = [read_part(files, address, rank) for rank in ranks]
        except OSError as error:
            if not _is_gone(error):
                raise
            return _stands(files, address)  # another has committed meanwhile, and has removed the parts
    except OSError as error:
        raise why(error, "reading the ranks' parts", f"{files.root}/{address.folder}") from error
    commit(files, merge(parts))
    for rank in ranks:
        with _tolerating("removing a part that is not needed any more", f"{files.root}/{address.part(rank)}"):
            files.remove(address.part(rank))
    return True


def is_settled(files: Files, address: Address, rank: int) -> bool:
    """Do the same for one who does not commit, but waits for another to do so. Lists nothing, as long as that lasts.

    Raises:
        Superseded: a newer writer has taken the path over.
        GivenUp: a rank does not take part.
        CheckpointError: what ``rank`` has written of it is gone.
    """
    try:
        if _stands(files, address):
            return True
        refuse_if_absent(files, address)
        if is_there(files, address.part(rank)):
            return False
    except OSError as error:
        raise why(error, "looking for what is there", f"{files.root}/{address.folder}") from error
    return _stands(files, address) or settled_and_gone(files, address)


def commit(files: Files, manifest: Manifest) -> None:
    """Commit the checkpoint that a complete manifest describes.

    Raises:
        Superseded: a newer writer has taken the path over.
        CheckpointError: the manifest could not be written.
    """
    address = Address(manifest.generation, manifest.step)
    try:
        refuse_if_superseded(files, address)
        files.write(address.manifest, [to_bytes(manifest)])
    except OSError as error:
        with contextlib.suppress(OSError):
            if _is_gone(error) and _stands(files, address):
                return  # committed by another, which has then tidied up
        raise _failed(files, address, error, "committing", address.manifest) from error
    try:
        # A newer writer that came before this line may be removing what it found without a manifest. One that comes
        # after it finds the manifest. So what is said to be committed stays.
        refuse_if_superseded(files, address)
    except CheckpointError:
        _remove_if_torn(files, address, manifest)
        raise
    except OSError as error:
        raise why(error, "committing", f"{files.root}/{address.manifest}") from error


def withdraw(files: Files, address: Address, rank: int) -> None:
    """Remove what a rank has written of a checkpoint that nobody can commit, because it was given up or is its own."""
    with _tolerating("removing what will not be committed", f"{files.root}/{address.folder}"):
        if is_there(files, address.manifest):
            return  # it was committed at an earlier try
        for name in (address.part(rank), address.shard(rank)):  # no part without its shard
            files.remove(name)


def settled_and_gone(files: Files, address: Address) -> bool:
    """Whether a checkpoint, of which a part was ours, was committed and has been pruned since.

    Raises:
        Superseded: a newer writer has taken the path over.
        CheckpointError: somebody has removed it who should not have.
    """
    try:
        if files.names(address.folder):
            return False
        refuse_if_superseded(files, address)
    except OSError as error:
        raise why(error, "looking for what is there", f"{files.root}/{address.folder}") from error
    if not any(other > address for other in committed(files)):
        raise CheckpointError(
            f"{files.root}/{address.folder}: somebody has removed this folder while it was written to"
        )
    return True


def _stands(files: Files, address: Address) -> bool:
    if not is_there(files, address.manifest):
        return False
    files.settle(address.folder)
    return True


def _remove_if_torn(files: Files, address: Address, manifest: Manifest) -> None:
    """Remove the manifest if shards are gone: on an object store there is no folder whose absence keeps it out."""
    with _tolerating("removing the manifest of what is gone", f"{files.root}/{address.manifest}"):
        if not {file.name for file in manifest.files} <= set(files.names(address.folder)):
            files.remove(address.manifest)


def read_part(files: Files, address: Address, rank: int) -> Manifest:
    """Read what a rank says of its shard.

    Raises:
        OSError: it cannot be read.
        Damaged: it is not what was written.
    """
    where = f"{files.root}/{address.part(rank)}"
    part = from_bytes(files.read(address.part(rank), MAX_BYTES + 1), where)
    if (part.generation, part.step, part.ranks) != (address.generation, address.step, (rank,)):
        raise Damaged(f"{where}: holds step {part.step} of generation {part.generation}, ranks {part.ranks}")
    return part


def _is_gone(error: OSError) -> bool:
    """Whether a file or its folder is not there any more. NFS says ``ESTALE`` of what another node has removed."""
    return isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE


def _failed(files: Files, address: Address, error: OSError, what: str, name: str) -> CheckpointError:
    """Say why writing failed. Where a newer writer has removed the folder, that is the reason."""
    try:
        if _is_gone(error):
            refuse_if_superseded(files, address)
    except CheckpointError as superseded:
        return superseded
    except OSError:
        pass
    return why(error, what, f"{files.root}/{name}")


@contextlib.contextmanager
def _tolerating(what: str, where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("%s", why(error, what, where))
    except Exception as error:  # noqa: BLE001 - stores of every kind; nothing depends on it
        log.warning("%s: %s failed: %r", where, what, error)
