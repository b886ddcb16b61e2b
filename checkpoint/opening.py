"""Finding out what lies at a path: a checkpoint of ours, of ``torch.distributed.checkpoint``, or of Hugging Face."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Literal

from tlaunch.checkpoint import catalog, huggingface
from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.files import Files, LocalFiles, why
from tlaunch.checkpoint.layout import MANIFEST, METADATA, SUFFIX, Address, address_of
from tlaunch.checkpoint.manifest import Manifest
from tlaunch.checkpoint.places import open_files
from tlaunch.checkpoint.reading import ShardReader, Twice
from tlaunch.checkpoint.source import Source


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a checkpoint lies, so that all ranks read the same. ``address``: one of ours; ``file``: a single file."""

    root: str
    kind: Literal["own", "dcp", "huggingface"]
    address: Address | None = None
    file: str | None = None


def locate(path: str | os.PathLike[str], step: int | None = None) -> Spot:
    """Say what lies at a path: of our checkpoints the newest, or that of ``step``.

    Raises:
        Unusable: there is nothing that can be read.
    """
    files = open_files(path)
    above, _, last = files.root.rpartition("/")
    if last.endswith(SUFFIX):
        return _stepless(_file(above or "/", last), step, files.root)
    try:
        names = files.names()
    except OSError as error:
        raise why(error, "looking for a checkpoint", files.root) from error
    address = single(files)
    if address is not None:
        if MANIFEST not in names:
            raise Unusable(f"{files.root}: this checkpoint was never committed")
        return _stepless(Spot(above or "/", "own", address), step, files.root)
    found = catalog.newest(files, step) if any(address_of(name) for name in names) else None
    if found is not None:
        return Spot(files.root, "own", found)
    if METADATA in names:
        return _stepless(Spot(files.root, "dcp"), step, files.root)
    if huggingface.model_files(names):
        return _stepless(Spot(files.root, "huggingface"), step, files.root)
    raise Unusable(f"{files.root}: {_nothing(names)}")


def single(files: Files) -> Address | None:
    """Return which checkpoint of ours a path is the folder of, if it is that of one."""
    return address_of(files.root.rpartition("/")[2])


def _file(folder: str, name: str) -> Spot:
    try:
        open_files(folder).size(name)
    except OSError as error:
        raise Unusable(f"{folder}/{name}: expected a safetensors file: {error.strerror or error}") from None
    return Spot(folder, "huggingface", file=name)


def _stepless(spot: Spot, step: int | None, where: str) -> Spot:
    if step is not None:
        raise Unusable(f"{where}: is one checkpoint; a step ({step}) can be asked for where a job saves several")
    return spot


def _nothing(names: list[str]) -> str:
    if any(name.endswith(".distcp") for name in names):
        return f"has files of torch.distributed.checkpoint, but no {METADATA}: it was not finished"
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return f"holds pickles ({pickles[0]}); expected safetensors files, .metadata, or a path that a job saves to"
    if any(address_of(name) for name in names):
        return "there is no committed checkpoint"
    return (
        "there is no checkpoint; expected a path that a job saves to, a directory of torch.distributed.checkpoint, "
        "or safetensors files"
    )


def open_spot(spot: Spot) -> Source:
    """Open what :func:`locate` has found.

    Raises:
        Damaged: it is not what was written.
        Unusable: it is of a newer version, or holds what cannot be read.
    """
    files = open_files(spot.root)
    if spot.address is not None:
        return open_own(files, spot.address)
    if spot.kind == "dcp":
        from tlaunch.checkpoint.distcp import open_dcp  # loads torch

        return open_dcp(files)
    return huggingface.open_file(files, spot.file) if spot.file else huggingface.open_directory(files)


def open_source(path: str | os.PathLike[str], step: int | None = None) -> Source:
    """Open what lies at a path: of our checkpoints the newest, or that of ``step``.

    Raises:
        CheckpointError: as :func:`locate` and :func:`open_spot`.
    """
    return open_spot(locate(path, step))


def open_own(files: Files, address: Address) -> Source:
    """Open one of our committed checkpoints.

    Raises:
        Damaged: its manifest is not what was written.
    """
    manifest = catalog.manifest_of(files, address)
    return Source(
        where=f"{files.root}/{address.folder}",
        tensors=manifest.tensors,
        reader=functools.partial(ShardReader, files, address, manifest),
        streamer=functools.partial(ShardReader, files, address, manifest, kept=_side_by_side(manifest)),
        values=manifest.values,
        files=manifest.files,
        step=manifest.step,
        world=manifest.world,
        twice=Twice(files, address, manifest) if isinstance(files, LocalFiles) else None,
    )


def _side_by_side(manifest: Manifest) -> int:
    """Return how many blocks hold what a tensor and the next one lie in: two of each file that has slices of them.

    With fewer, who streams tensors that many ranks have saved reads a whole block for each slice, again and again.
    """
    return 2 * max((len(tensor.slices) for tensor in manifest.tensors.values()), default=1)
