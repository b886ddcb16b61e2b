"""Which whole nodes stay spare where that is what is asked for (``--spares 2n``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tlaunch.topology.layout import Layout
from tlaunch.topology.model import LEVELS
from tlaunch.topology.shares import apportion
from tlaunch.topology.spares import SpareRequest
from tlaunch.topology.tree import Region, measure


def hold_nodes(root: Region, layout: Layout, request: SpareRequest) -> list[Sequence[int]]:
    """Take whole nodes out of the tree, as many as asked for while every rank still has a slot; return their slots.

    They are spread in proportion, unless more of the mesh can have what it needs if they come from the end of the
    machine.
    """
    if request.unit != "node" or not request.count:
        return []
    best, most = list[Region](), -1
    for evenly in (True, False):
        nodes = _chosen(root, layout.mesh.size, request, evenly=evenly)
        slots = [_set(node, ()) for node in nodes]
        _recount(root)
        room = min(measure(root, layout.needs, None), layout.mesh.size)
        for node, positions in zip(nodes, slots, strict=True):
            _set(node, positions)
        if room > most:
            best, most = nodes, room
    held = [_set(node, ()) for node in best]
    _recount(root)
    return held


def spread_no_more(region: Region, level: int | None) -> None:
    """Let blocks of the mesh stay whole at any price, inside the regions of a level excepted.

    The spares are where they should be, or nobody asked for any.
    """
    if level is not None and level in region.levels:
        return
    region.even = False
    for part in region.parts:
        spread_no_more(part, level)


def _chosen(root: Region, ranks: int, request: SpareRequest, *, evenly: bool) -> list[Region]:
    _recount(root)
    places = [root] if request.per is None else list(_regions(root, LEVELS.index(request.per)))
    budget, chosen = root.free - ranks, list[Region]()
    for place in places:
        for node in _pick(place, request.count, evenly=evenly):
            if node.free <= budget:
                budget -= node.free
                chosen.append(node)
    return chosen


def _pick(region: Region, count: int, *, evenly: bool) -> list[Region]:
    """Return ``count`` whole nodes of a region, fewer if it has no more."""
    if not region.parts:
        return [region] if count and region.whole else []
    there = [_whole(part) for part in region.parts]
    count = min(count, sum(there))
    if evenly and region.spread:
        shares = apportion(count, [part.free for part in region.parts], [0] * len(there), there)
    else:
        shares = []
        for whole in reversed(there):
            shares.insert(0, min(whole, count))
            count -= shares[0]
    return [
        node
        for part, share in zip(region.parts, shares, strict=True)
        if share
        for node in _pick(part, share, evenly=evenly)
    ]


def _whole(region: Region) -> int:
    """Count the nodes of a region that are wholly healthy."""
    return sum(map(_whole, region.parts)) if region.parts else int(region.whole)


def _regions(region: Region, level: int) -> Iterator[Region]:
    if level in region.levels:
        yield region
        return
    for part in region.parts:
        yield from _regions(part, level)


def _set(node: Region, slots: Sequence[int]) -> Sequence[int]:
    """Change which slots of a node can be used; return those before."""
    before, node.slots = node.slots, slots
    return before


def _recount(region: Region) -> int:
    region.free = sum(map(_recount, region.parts)) if region.parts else len(region.slots)
    return region.free
