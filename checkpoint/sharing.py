"""Which bytes of a checkpoint's files several ranks want, and how they share the first reading of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from tlaunch.checkpoint.manifest import BLOCK

LONGEST = 64 * BLOCK
"""Bytes that one thread reads in order: so many that the system reads ahead of it."""


class Range(NamedTuple):
    """The bytes of a file from ``begin`` up to, but not including, ``end``."""

    file: int
    begin: int
    end: int


def union(ranges: Iterable[Range]) -> list[Range]:
    """Return the same bytes in order, each once, in as few ranges as there can be."""
    found: list[Range] = []
    for one in sorted(ranges):
        if found and found[-1].file == one.file and one.begin <= found[-1].end:
            found[-1] = Range(one.file, found[-1].begin, max(found[-1].end, one.end))
        elif one.begin < one.end:
            found.append(one)
    return found


def blocks(ranges: Iterable[Range]) -> list[Range]:
    """Return all blocks that hold some of these bytes. The last of a file may be shorter than is said here."""
    return union(Range(one.file, one.begin // BLOCK * BLOCK, -(-one.end // BLOCK) * BLOCK) for one in union(ranges))


def share(ranges: Sequence[Range], part: int, parts: int) -> Iterator[Range]:
    """Cut ranges of blocks into ``parts`` parts, none more than a block longer than another, and yield one of them.

    It consists of blocks in their order, in ranges that are not too long.
    """
    total = sum(one.end - one.begin for one in ranges) // BLOCK
    first, stop = total * part // parts * BLOCK, total * (part + 1) // parts * BLOCK
    before = 0
    for one in ranges:
        end = min(one.end, one.begin + stop - before)
        for begin in range(max(one.begin, one.begin + first - before), end, LONGEST):
            yield Range(one.file, begin, min(begin + LONGEST, end))
        before += one.end - one.begin


Cuts = Mapping[tuple[int, int], Sequence[Range]]
"""Parts of blocks that somebody wants, by file and first byte of the block."""


def cuts(ranges: Iterable[Range]) -> Cuts:
    """Return the parts of those blocks that a range does not hold as a whole."""
    found: dict[tuple[int, int], dict[Range, None]] = {}
    for file, begin, end in ranges:
        for block in {begin // BLOCK * BLOCK, (end - 1) // BLOCK * BLOCK}:
            part = Range(file, max(begin, block), min(end, block + BLOCK))
            if part.end - part.begin < BLOCK:
                found.setdefault((file, block), {})[part] = None
    return {block: list(parts) for block, parts in found.items()}


Sums = Mapping[Range, int]
"""Checksums of parts of blocks."""


def pack(ranges: Iterable[Range]) -> bytes:
    """Return ranges as 24 bytes each, for other ranks."""
    return array("Q", chain.from_iterable(ranges)).tobytes()


def unpack(data: bytes) -> Iterator[Range]:
    """Read what :func:`pack` has written."""
    each = iter(_numbers(data))
    return map(Range, each, each, each)


def pack_sums(sums: Sums) -> bytes:
    """Return checksums as 32 bytes each, for other ranks."""
    return array("Q", chain.from_iterable((*part, crc) for part, crc in sums.items())).tobytes()


def unpack_sums(data: bytes) -> Iterator[tuple[Range, int]]:
    """Read what :func:`pack_sums` has written."""
    each = iter(_numbers(data))
    return ((Range(*part), crc) for *part, crc in zip(each, each, each, each, strict=True))


def _numbers(data: bytes) -> array[int]:
    numbers = array("Q")
    numbers.frombytes(data)
    return numbers
