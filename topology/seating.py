"""Who sits where: blocks of the sequence are dealt down the tree of regions."""

from __future__ import annotations

from collections.abc import Sequence

from tlaunch.topology.layout import Layout
from tlaunch.topology.model import Level
from tlaunch.topology.shares import Parts, from_the_front, spread
from tlaunch.topology.tree import Region, measure

Run = tuple[int, int]
"""Consecutive places of the sequence: the first, and one past the last."""


def seat(root: Region, layout: Layout, keep: tuple[Level, int] | None) -> None:
    """Give every rank a slot: fill ``taken`` of the nodes.

    First as many of the largest blocks as can have all that they need, with every region keeping what it should; then
    the rest, with less and less of it. The root must have a free slot for each rank.
    """
    size, done = layout.mesh.size, 0
    for needs in layout.relaxations():
        for kept in (keep, None) if keep else (None,):
            block = needs[-1].size if needs else 1
            count = min(measure(root, needs, kept), size - done) // block * block
            if count:
                _deal(root, [(done, done + count)], count, layout.blocks)
                done += count
            if done == size:
                return


def _deal(region: Region, runs: list[Run], total: int, blocks: Sequence[int]) -> None:
    region.free -= total
    if not region.parts:
        region.taken += runs
        return
    parts = region.parts
    if len(parts) == 1:
        _deal(parts[0], runs, total, blocks)
        return
    room, free, homes = zip(*((part.room, part.free, part.homes) for part in parts), strict=True)
    limits = Parts(room, free, homes, max(part.grain for part in parts), region.even)
    shares = (spread if region.spread else from_the_front)(total, limits, blocks)
    sizes = [block for block in reversed(blocks) if limits.grain < block <= max(shares)]
    for part, dealt, share in zip(parts, _runs(runs, shares, [*sizes, limits.grain]), shares, strict=True):
        if share:
            _deal(part, dealt, share, blocks)


def _runs(runs: list[Run], shares: Sequence[int], sizes: Sequence[int]) -> list[list[Run]]:
    """Split runs into one list for each share: the largest whole blocks first, from the front."""
    dealt: list[list[Run]] = [[] for _ in shares]
    left = list(shares)
    for size in sizes:
        part, rest = 0, list[Run]()
        for first, end in runs:
            start = min(-(-first // size) * size, end)
            if first < start:
                rest.append((first, start))
            while end - start >= size and part < len(left):
                count = min(left[part], end - start) // size * size
                if count:
                    dealt[part].append((start, start + count))
                    left[part] -= count
                    start += count
                else:
                    part += 1
            if start < end:
                rest.append((start, end))
        runs = rest
        if not runs:
            break
    return dealt
