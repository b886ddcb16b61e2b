"""Reading what a rank wants from the slices that other ranks, of another world, have written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from tlaunch.checkpoint.dtypes import BYTES, torch_name
from tlaunch.checkpoint.files import Files
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import Manifest, Slice
from tlaunch.checkpoint.memory import memory_of
from tlaunch.checkpoint.reading import ShardReader
from tlaunch.checkpoint.region import Region

_THREADS = 4
_AT_ONCE = 64 << 20
"""Bytes of a slice that are read at once where they cannot be read to their place."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The box ``region`` of a tensor that is in the checkpoint."""

    name: str
    region: Region


def load(files: Files, address: Address, manifest: Manifest, wanted: Sequence[Wanted]) -> list[torch.Tensor]:
    """Return each wanted box as a contiguous tensor in memory. Only blocks that hold wanted bytes are read.

    Raises:
        Damaged: bytes have changed or are missing.
    """
    boxes = [
        torch.empty(want.region.shape, dtype=getattr(torch, torch_name(manifest.tensors[want.name].dtype)))
        for want in wanted
    ]
    # In the order of the file, so that blocks which several tensors share are read once.
    order = sorted(range(len(wanted)), key=lambda index: _first(manifest, wanted[index]))
    threads = max(1, min(_THREADS, os.cpu_count() or 1, len(order)))

    def read(mine: Iterable[int]) -> None:
        reader = ShardReader(files, address, manifest)
        for index in mine:
            _fill(reader, manifest, wanted[index], boxes[index])

    with ThreadPoolExecutor(threads, thread_name_prefix="checkpoint read") as pool:
        size = max(1, -(-len(order) // threads))
        list(pool.map(read, [order[begin : begin + size] for begin in range(0, len(order), size)]))
    return boxes


def _first(manifest: Manifest, want: Wanted) -> tuple[int, int]:
    touched = (at for at in manifest.tensors[want.name].slices if at.region.intersection(want.region))
    return min(((at.file, at.begin) for at in touched), default=(0, 0))


def _fill(reader: ShardReader, manifest: Manifest, want: Wanted, box: torch.Tensor) -> None:
    tensor = manifest.tensors[want.name]
    width = BYTES[tensor.dtype]
    for at in tensor.slices:
        shared = at.region.intersection(want.region)
        if shared is None:
            continue
        source, target = shared.relative_to(at.region), shared.relative_to(want.region)
        into = list(target.runs(want.region.shape))[:2]
        (first, count), *more = list(source.runs(at.region.shape))[:2]
        if not more and len(into) == 1:
            out = memory_of(box)
            reader.fill(at.file, at.begin + first * width, out[into[0][0] * width : (into[0][0] + count) * width])
        else:
            _copy_box(reader, at, source, box[_index(target)], width)


def _index(region: Region) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + size) for begin, size in zip(region.offset, region.shape, strict=True))


def _copy_box(reader: ShardReader, at: Slice, source: Region, out: torch.Tensor, width: int) -> None:
    """Copy a box whose rows are not next to each other: read some rows with what lies between them, and pick."""
    row = at.region.volume // at.region.shape[0] * width
    step = max(1, _AT_ONCE // row)
    rest = Region(source.offset[1:], source.shape[1:])
    for begin in range(0, source.shape[0], step):
        count = min(step, source.shape[0] - begin)
        rows = torch.empty((count, *at.region.shape[1:]), dtype=out.dtype)
        reader.fill(at.file, at.begin + (source.offset[0] + begin) * row, memory_of(rows))
        out[begin : begin + count] = rows[(slice(None), *_index(rest))]
