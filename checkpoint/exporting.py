"""Writing the layout of Hugging Face, which ``transformers`` and ``safetensors`` load.

Shards come first and the index last; a file appears under its name when it is complete. Killed at any point, nothing
is there that would be taken for a whole model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tlaunch.checkpoint.checksum import crc32
from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.files import why
from tlaunch.checkpoint.flows import Flow, contents, flows
from tlaunch.checkpoint.fresh import fresh
from tlaunch.checkpoint.huggingface import INDEX, WHOLE
from tlaunch.checkpoint.layout import is_reserved
from tlaunch.checkpoint.naming import Rule, renamed
from tlaunch.checkpoint.shard import arrange
from tlaunch.checkpoint.source import Source

SHARD_SIZE = 5_000_000_000
"""Bytes of tensors that a file holds at most, unless one tensor is larger."""


@dataclass(frozen=True, slots=True)
class Export:
    """What is to be written. ``reads``: bytes of the source that are read for it.

    ``left`` counts tensors that are left out, by the first part of their names; ``values`` counts what is no tensor,
    for which the layout has no place.
    """

    source: Source
    names: dict[str, str]
    dtype: str | None
    shard_size: int
    reads: int
    left: dict[str, int]
    values: int


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: files, and how many bytes of tensors. ``same``: names of tensors with the same bytes."""

    files: tuple[str, ...]
    size: int
    same: tuple[tuple[str, ...], ...]


def prepare(source: Source, *, prefix: str, rules: Sequence[Rule], dtype: str | None, shard_size: int) -> Export:
    """Choose the tensors whose names start with ``prefix``, which is taken off, and rename them.

    Raises:
        Unusable: there is none, or the new names make no sense.
    """
    ours = [name for name in source.tensors if not is_reserved(name)]
    chosen = [name for name in ours if name.startswith(prefix)]
    if not chosen:
        parts = ", ".join(sorted({name.partition(".")[0] for name in ours})) or "no tensors at all"
        raise Unusable(f"{source.where}: no tensor's name starts with {prefix!r}; there are {parts}")
    names = renamed(chosen, rules, prefix)
    left = Counter(name.partition(".")[0] for name in ours if name not in names)
    values = sum(not is_reserved(name) for name in (*source.values, *source.lost))
    reads = sum(source.tensors[name].size for name in names)
    return Export(source, names, dtype, shard_size, reads, dict(left), values)


def write(export: Export, target: str, told: Callable[[int], object] = lambda _: None) -> Exported:
    """Write it to a folder that is empty, or not there yet. ``told`` is called with numbers of bytes that were read.

    Raises:
        Unusable: something is there already, or a number is too large for the type.
        Damaged: the source is.
        CheckpointError: it could not be written. What was, has been removed.
    """
    sums: dict[str, int] = {}

    def heard(name: str, chunk: memoryview) -> None:
        sums[name] = crc32(chunk, sums.get(name, 0))
        told(len(chunk))

    shards = _packed(flows(export.source, export.names, export.dtype, heard), export.shard_size)
    files = [WHOLE] if len(shards) == 1 else [_shard_name(at, len(shards)) for at in range(len(shards))]
    size = sum(flow.size for shard in shards for flow in shard)
    with fresh(target, size) as place:
        name = ""
        try:
            for name, shard in zip(files, shards, strict=True):
                place.write(name, contents(arrange(shard)))
            if len(shards) > 1:
                name = INDEX
                homes = {flow.name: file for file, shard in zip(files, shards, strict=True) for flow in shard}
                index = {"metadata": {"total_size": size}, "weight_map": homes}
                place.write(INDEX, [(json.dumps(index, indent=2) + "\n").encode()])
        except OSError as error:
            raise why(error, "exporting", f"{place.root}/{name}") from error
    return Exported((*files, INDEX) if len(shards) > 1 else tuple(files), size, _same(export, sums))


def _packed(pieces: Sequence[Flow], shard_size: int) -> list[list[Flow]]:
    shards: list[list[Flow]] = [[]]
    filled = 0
    for piece in pieces:
        if shards[-1] and filled + piece.size > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += piece.size
    return shards


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _same(export: Export, sums: dict[str, int]) -> tuple[tuple[str, ...], ...]:
    """Return names of matrices with the same bytes, as weights have that are tied."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, crc in sums.items():
        tensor = export.source.tensors[name]
        if len(tensor.shape) > 1:
            groups.setdefault((crc, tensor.dtype, tensor.shape), []).append(export.names[name])
    return tuple(tuple(sorted(names)) for names in groups.values() if len(names) > 1)
