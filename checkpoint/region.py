"""Boxes in tensors: which part of a global tensor a stored slice or a wanted one is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Region:
    """A box: ``shape`` elements from ``offset`` on, in each dimension. A scalar has no dimensions."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """Return the box that is a whole tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def volume(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def within(self, shape: Sequence[int]) -> bool:
        """Whether the box lies in a tensor of this shape."""
        if not len(self.offset) == len(self.shape) == len(shape):
            return False
        for offset, size, limit in zip(self.offset, self.shape, shape, strict=True):
            if offset < 0 or size < 0 or offset + size > limit:
                return False
        return True

    def intersection(self, other: Region) -> Region | None:
        """Return the box that both share, or ``None`` when they share no element."""
        start, shape = [], []
        for a, size, b, other_size in zip(self.offset, self.shape, other.offset, other.shape, strict=True):
            begin, end = max(a, b), min(a + size, b + other_size)
            if begin >= end:
                return None
            start.append(begin)
            shape.append(end - begin)
        return Region(tuple(start), tuple(shape))

    def relative_to(self, outer: Region) -> Region:
        """Return the same box, counted from the first element of ``outer``."""
        return Region(tuple(a - b for a, b in zip(self.offset, outer.offset, strict=True)), self.shape)

    def runs(self, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield the box as contiguous runs ``(first element, count)`` in a row-major tensor of ``shape``."""
        if self.volume == 0:
            return
        inner = len(shape)
        while inner > 0 and self.shape[inner - 1] == shape[inner - 1]:
            inner -= 1  # this dimension is taken whole, so that rows of it follow one another
        strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        split = max(inner - 1, 0)
        count = math.prod(self.shape[split:])
        base = sum(offset * stride for offset, stride in zip(self.offset, strides, strict=True))
        for index in itertools.product(*(range(size) for size in self.shape[:split])):
            yield base + sum(i * stride for i, stride in zip(index, strides, strict=False)), count


def missing_part(shape: Sequence[int], parts: Iterable[Region]) -> str | None:
    """Say why ``parts`` do not make up a tensor of ``shape``, each element exactly once; ``None`` when they do."""
    boxes = [part for part in parts if part.volume]
    outside = next((box for box in boxes if not box.within(shape)), None)
    if outside is not None:
        return f"a slice at {list(outside.offset)} of {list(outside.shape)} lies outside of {list(shape)}"
    total, wanted = sum(box.volume for box in boxes), math.prod(shape)
    if total < wanted:
        return f"{wanted - total} of {wanted} elements are missing"
    # With an overlap somewhere, as many elements would have to be missing elsewhere, so one of the two is enough.
    overlap = _overlap(boxes)
    if overlap is not None:
        return f"the slices at {list(overlap[0].offset)} and {list(overlap[1].offset)} overlap"
    return None


def _overlap(boxes: Sequence[Region]) -> tuple[Region, Region] | None:
    """Find two boxes that share an element: sweep over the first dimension in which they differ."""
    if len(boxes) < 2:
        return None
    rank = len(boxes[0].offset)
    axis = max(range(rank), key=lambda dim: len({box.offset[dim] for box in boxes}), default=0)
    if rank == 0:
        return boxes[0], boxes[1]
    open_: list[Region] = []
    for box in sorted(boxes, key=lambda box: box.offset[axis]):
        open_ = [other for other in open_ if other.offset[axis] + other.shape[axis] > box.offset[axis]]
        for other in open_:
            if box.intersection(other) is not None:
                return other, box
        open_.append(box)
    return None
