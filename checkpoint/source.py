"""Tensors and values that lie somewhere, whatever their format, and how their bytes are streamed without torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tlaunch.checkpoint.dtypes import BYTES
from tlaunch.checkpoint.manifest import File, Tensor
from tlaunch.checkpoint.reading import Twice
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.values import Json

AT_ONCE = 32 << 20
"""Bytes of a tensor that are in memory at once while it is streamed."""


class Reader(Protocol):
    """Reads the bytes that slices lie in. Each thread has the source make one."""

    def fill(self, file: int, begin: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes of ``files[file]`` from ``begin`` on.

        Raises:
            Damaged: bytes are missing, or have changed where that can be seen.
        """
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """What can be exported, imported, compared and loaded.

    ``files`` holds checksums where the format has any. ``lost`` says of values why they cannot be represented.
    ``step`` and ``world`` are ``None`` where the format does not tell. ``twice`` is ``None`` where a second reading
    costs as much as the first, or where there are no checksums to compare. ``streamer`` makes readers for those who go
    from tensor to tensor instead of from file to file, where that makes a difference.
    """

    where: str
    tensors: Mapping[str, Tensor]
    reader: Callable[[], Reader]
    values: Mapping[str, Json] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[File] = ()
    step: int | None = None
    world: int | None = None
    twice: Twice | None = None
    streamer: Callable[[], Reader] | None = None

    def streaming_reader(self) -> Reader:
        """Return a reader for ``stream`` and ``content``."""
        return (self.streamer or self.reader)()


def stream(tensor: Tensor, reader: Reader) -> Iterator[memoryview]:
    """Yield the bytes of a whole tensor, row-major, in pieces of whole elements and at most ``AT_ONCE`` bytes."""
    for box in boxes(tensor.shape, BYTES[tensor.dtype]):
        yield memoryview(content(tensor, box, reader))


def boxes(shape: Sequence[int], width: int) -> Iterator[Region]:
    """Yield a tensor as boxes that follow one another in its row-major bytes. ``width``: bytes of one element."""
    if math.prod(shape) * width <= AT_ONCE:
        yield Region.whole(shape)
        return
    # The first dimension whose rows fit: the ones before it are gone through one by one.
    dim = next(at for at in range(len(shape)) if math.prod(shape[at + 1 :]) * width <= AT_ONCE)
    rest = tuple(shape[dim + 1 :])
    step = AT_ONCE // (math.prod(rest) * width)
    for index in itertools.product(*(range(size) for size in shape[:dim])):
        for begin in range(0, shape[dim], step):
            count = min(step, shape[dim] - begin)
            yield Region((*index, begin, *(0 for _ in rest)), (*(1 for _ in index), count, *rest))


def content(tensor: Tensor, box: Region, reader: Reader) -> bytearray:
    """Return the bytes of a box of a tensor, row-major, from the slices that it lies in."""
    width = BYTES[tensor.dtype]
    data = bytearray(box.volume * width)
    out = memoryview(data)
    for at in tensor.slices:
        shared = at.region.intersection(box)
        if shared is None:
            continue
        source = shared.relative_to(at.region).runs(at.region.shape)
        target = shared.relative_to(box).runs(box.shape)
        for first, to, count in _side_by_side(source, target):
            reader.fill(at.file, at.begin + first * width, out[to * width : (to + count) * width])
    return data


def _side_by_side(source: Iterator[tuple[int, int]], target: Iterator[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    """Yield ``(first element there, first element here, count)`` for runs that pass over the same elements."""
    here, room = 0, 0
    for start, length in source:
        there, left = start, length
        while left:
            if not room:
                here, room = next(target)
            count = min(left, room)
            yield there, here, count
            there, left, here, room = there + count, left - count, here + count, room - count
