"""Reading what a rank wants from the slices that other ranks, of another world, have written."""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from tlaunch.checkpoint.dtypes import BYTES, torch_name
from tlaunch.checkpoint.files import Files
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.manifest import BLOCK, Manifest, Slice, Tensor
from tlaunch.checkpoint.memory import is_plain, memory_of
from tlaunch.checkpoint.reading import Comparer, ShardReader
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Box
from tlaunch.checkpoint.sharing import Cuts, Range, union
from tlaunch.checkpoint.source import Reader

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 4
"""At least so many: while one waits for the disk, another compares checksums."""
_AT_ONCE = 16 << 20
"""Bytes that a thread reads in one go. Where these end, a block may be read by two threads."""
_ALIGN = 64


@dataclass(frozen=True, slots=True)
class Wanted:
    """The box ``region`` of a tensor that is in the checkpoint."""

    name: str
    region: Region


@dataclass(frozen=True, slots=True)
class _Read:
    """So many bytes from ``begin`` of a file on, and what to do to have them in their place in the tensor ``name``."""

    name: str
    file: int
    begin: int
    size: int
    do: Callable[[Reader], None]


class Filling:
    """All that has to be read to fill some tensors, which may be anywhere and of any strides."""

    def __init__(self, tensors: Mapping[str, Tensor], wanted: Sequence[Wanted], boxes: Sequence[torch.Tensor]) -> None:
        """Look where in a checkpoint the bytes are for boxes of these shapes and types."""
        reads = (
            read for want, box in zip(wanted, boxes, strict=True) for read in _reads(tensors[want.name], want, box)
        )
        # In the order of the file, so that blocks which several tensors share are read once.
        self._reads = sorted(reads, key=lambda read: (read.file, read.begin))
        self._elsewhere = {box.device for box in boxes if box.is_cuda}

    @property
    def ranges(self) -> list[Range]:
        """The bytes that hold all of it."""
        return union(Range(read.file, read.begin, read.begin + read.size) for read in self._reads)

    def read(self, readers: Callable[[], Reader], names: AbstractSet[str] | None = None) -> None:
        """Fill the tensors, or those of some names, no two of which may share memory. Each thread makes a reader.

        Raises:
            Damaged: bytes have changed or are missing. Some of the tensors are changed.
        """
        reads = [read for read in self._reads if names is None or read.name in names]
        for device in self._elsewhere:
            torch.cuda.synchronize(device)
        _in_threads(list(_groups(reads)), readers, _read_all)
        for device in self._elsewhere:
            torch.cuda.synchronize(device)  # the threads' streams are not the caller's


def load(files: Files, address: Address, manifest: Manifest, wanted: Sequence[Wanted]) -> list[torch.Tensor]:
    """Return each wanted box of a checkpoint of ours, as :func:`gather` does. Only blocks that hold them are read."""
    return gather(manifest.tensors, lambda: ShardReader(files, address, manifest), wanted)


def gather(
    tensors: Mapping[str, Tensor], readers: Callable[[], Reader], wanted: Sequence[Wanted]
) -> list[torch.Tensor]:
    """Return each wanted box as a contiguous tensor in memory. Each thread makes a reader.

    Raises:
        Damaged: bytes have changed or are missing.
    """
    boxes = _room_for(tensors, wanted)
    Filling(tensors, wanted, boxes).read(readers)
    return boxes


def compare(
    blocks: Iterable[Range], parts: Cuts, comparers: Callable[[], Comparer], *, threads: int
) -> dict[Range, int]:
    """Compare the checksums of some blocks, and return those of parts of them. Each thread makes a comparer.

    Raises:
        Damaged: bytes have changed or are missing.
    """
    sums: dict[Range, int] = {}

    def do(some: Range, comparer: Comparer) -> None:
        sums.update(comparer.compare(some, parts))

    _in_threads(list(blocks), comparers, do, threads)
    return sums


def _read_all(group: Sequence[_Read], reader: Reader) -> None:
    for read in group:
        read.do(reader)


def _in_threads(
    tasks: Sequence[T], readers: Callable[[], R], do: Callable[[T, R], None], threads: int | None = None
) -> None:
    """Have some threads, each with a reader, take one task after the other. The first failure ends it."""
    left = iter(tasks)
    lock = threading.Lock()

    def work(_: int) -> None:
        reader = readers()
        while True:
            with lock:
                task = next(left, None)
            if task is None:
                return
            try:
                do(task, reader)
            except BaseException:
                with lock:
                    list(left)  # the others need not go on
                raise

    threads = min(threads or max(_THREADS, os.cpu_count() or 1), len(tasks))
    if not threads:
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="checkpoint read") as pool:
        list(pool.map(work, range(threads)))


def _room_for(tensors: Mapping[str, Tensor], wanted: Sequence[Wanted]) -> list[torch.Tensor]:
    """Return tensors without content, all in one piece of memory: in large pages, which take far less time to come."""
    boxes = [Box(want.name, tensors[want.name].dtype, want.region.shape, want.region) for want in wanted]
    begins = list(itertools.accumulate((-(-box.size // _ALIGN) * _ALIGN for box in boxes), initial=0))
    memory = mmap.mmap(-1, max(begins[-1], 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # not every kernel has them
        memory.madvise(mmap.MADV_HUGEPAGE)
    room = []
    for box, begin in zip(boxes, begins, strict=False):
        dtype: torch.dtype = getattr(torch, torch_name(box.dtype))
        count = box.region.volume
        flat = (
            torch.frombuffer(memory, dtype=dtype, count=count, offset=begin) if count else torch.empty(0, dtype=dtype)
        )
        room.append(flat.view(box.shape))
    return room


def _groups(reads: Sequence[_Read]) -> Iterator[list[_Read]]:
    group: list[_Read] = []
    size = 0
    for read in reads:
        group.append(read)
        size += read.size
        if size >= _AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _reads(tensor: Tensor, want: Wanted, box: torch.Tensor) -> Iterator[_Read]:
    width = BYTES[tensor.dtype]
    for at in tensor.slices:
        shared = at.region.intersection(want.region)
        if shared is None:
            continue
        source, target = shared.relative_to(at.region), shared.relative_to(want.region)
        into = list(itertools.islice(target.runs(want.region.shape), 2))
        (first, count), *more = itertools.islice(source.runs(at.region.shape), 2)
        if not more and len(into) == 1 and is_plain(box):
            out = memory_of(box)[into[0][0] * width : (into[0][0] + count) * width]
            yield from _run(want.name, at.file, at.begin + first * width, out)
        else:
            yield from _rows(want.name, at, source, box[_index(target)], width)


def _run(name: str, file: int, begin: int, out: memoryview) -> Iterator[_Read]:
    """Read bytes that lie next to each other, in parts that end where blocks do."""
    done = 0
    while done < len(out):
        end = min(len(out), (begin + done + _AT_ONCE) // BLOCK * BLOCK - begin)
        part, at = out[done:end], begin + done
        yield _Read(name, file, at, end - done, functools.partial(_fill, file=file, begin=at, out=part))
        done = end


def _index(region: Region) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + size) for begin, size in zip(region.offset, region.shape, strict=True))


def _fill(reader: Reader, *, file: int, begin: int, out: memoryview) -> None:
    reader.fill(file, begin, out)


def _rows(name: str, at: Slice, source: Region, out: torch.Tensor, width: int) -> Iterator[_Read]:
    """Read a box in parts, some rows with what lies between what is wanted of them, and pick."""
    if not at.region.shape:
        at, source, out = Slice(at.file, at.begin, Region((0,), (1,))), Region((0,), (1,)), out.unsqueeze(0)
    row = at.region.volume // at.region.shape[0] * width
    step = max(1, _AT_ONCE // row)
    rest = _index(Region(source.offset[1:], source.shape[1:]))
    for begin in range(0, source.shape[0], step):
        count = min(step, source.shape[0] - begin)
        first = at.begin + (source.offset[0] + begin) * row
        part = out[begin : begin + count]

        def pick(reader: Reader, first: int = first, part: torch.Tensor = part) -> None:
            rows = torch.empty((len(part), *at.region.shape[1:]), dtype=part.dtype)
            reader.fill(at.file, first, memory_of(rows))
            part.copy_(rows[(slice(None), *rest)])

        yield _Read(name, at.file, first, count * row, pick)
