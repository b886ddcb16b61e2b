"""How many of a region's ranks each part of it gets."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a region: how many ranks each can take, how many free slots it has, and how many it should keep.

    ``room`` is a multiple of ``grain`` everywhere: parts get ranks in whole grains. ``even``: spares are to be spread.
    """

    room: Sequence[int]
    free: Sequence[int]
    spares: Sequence[int]
    grain: int
    even: bool = True

    def fit(self, block: int) -> list[int]:
        """How many blocks each part can take whole."""
        return [room // block for room in self.room]

    def less(self, taken: Sequence[int]) -> Parts:
        """Return the parts without what is taken."""
        room = [room - gone for room, gone in zip(self.room, taken, strict=True)]
        free = [free - gone for free, gone in zip(self.free, taken, strict=True)]
        return Parts(room, free, self.spares, self.grain, self.even)


def spread(total: int, parts: Parts, blocks: Sequence[int]) -> list[int]:
    """Share ``total`` ranks in proportion to the free slots, or in order, so that few blocks lie in several parts.

    ``blocks``: the sizes of the blocks, smallest first. All blocks of a size that can stay whole do, unless a part had
    to give spares for that which it should keep, and would keep otherwise.
    """
    lower = [0] * len(parts.room)
    for block in _worth(blocks, parts):
        fit, wanted = parts.fit(block), total // block
        if wanted > sum(fit):
            if block in blocks:
                lower = [max(low, count * block) for low, count in zip(lower, fit, strict=True)]
            continue
        low = [-(-bound // block) for bound in lower]
        if not wanted or sum(low) > wanted or any(a > b for a, b in zip(low, fit, strict=True)):
            continue
        whole = [count * block for count in apportion(wanted, parts.free, low, fit)]
        rest = spread(total - wanted * block, parts.less(whole), blocks) if total % block else [0] * len(whole)
        shares = [a + b for a, b in zip(whole, rest, strict=True)]
        if not parts.even or not _strips(shares, _evenly(total, parts, lower), parts):
            return shares
    return _evenly(total, parts, lower) if parts.even else _in_order(total, parts, lower)


def from_the_front(total: int, parts: Parts, blocks: Sequence[int]) -> list[int]:
    """Fill one part after the other, so that what stays free is whole parts at the end.

    Blocks that can all stay whole without breaking up more parts do.
    """
    for block in [*_worth(blocks, parts, exact=True), parts.grain]:
        fit, wanted = parts.fit(block), total // block
        if not wanted or wanted > sum(fit):
            continue
        whole = [count * block for count in _fill(wanted, fit)]
        left = total - wanted * block
        if not left:
            return whole
        if sum(parts.room) - sum(whole) >= left:
            rest = from_the_front(left, parts.less(whole), blocks)
            return [a + b for a, b in zip(whole, rest, strict=True)]
    return [0] * len(parts.room)


def apportion(total: int, weights: Sequence[int], lower: Sequence[int], upper: Sequence[int]) -> list[int]:
    """Split ``total`` in proportion to ``weights`` within bounds; the remainder goes to whoever is most short.

    The bounds must allow it: ``sum(lower) <= total <= sum(upper)``.
    """
    whole = sum(weights) or 1
    shares = [
        min(max(total * weight // whole, low), high) for weight, low, high in zip(weights, lower, upper, strict=True)
    ]
    missing = total - sum(shares)
    step = 1 if missing > 0 else -1
    bounds = upper if missing > 0 else lower
    # Who is most short of its share comes first; when there is too much, who is least short, the last of equals.
    queue = [
        (step * (share * whole - total * weight), step * index)
        for index, (share, weight) in enumerate(zip(shares, weights, strict=True))
        if share != bounds[index]
    ]
    heapq.heapify(queue)
    for _ in range(abs(missing)):
        surplus, index = queue[0]
        shares[step * index] += step
        if shares[step * index] == bounds[step * index]:
            heapq.heappop(queue)
        else:
            heapq.heapreplace(queue, (surplus + whole, index))
    return shares


def _worth(blocks: Sequence[int], parts: Parts, *, exact: bool = False) -> list[int]:
    """Return the sizes worth keeping whole, largest first: blocks that fit into a part, and pieces of the next one.

    A block that is larger than any part lies in as few parts as can be if it is cut into that many equal pieces.
    ``exact``: only if a piece fills a part.
    """
    most = max(parts.room, default=0)
    sizes = [block for block in blocks if parts.grain < block <= most]
    larger = next((block for block in blocks if block > most), None)
    unit = max((block for block in blocks if block <= most), default=1)
    unit = max(unit, parts.grain)
    if larger is not None and most:
        members, fit = larger // unit, most // unit
        pieces = -(-members // fit)
        piece = members // pieces * unit
        if members % pieces == 0 and piece > max(unit, parts.grain) and not (exact and piece != most):
            sizes.append(piece)
    return sizes[::-1]


def _fill(total: int, upper: Sequence[int]) -> list[int]:
    shares: list[int] = []
    for high in upper:
        shares.append(min(high, total))
        total -= shares[-1]
    return shares


def _evenly(total: int, parts: Parts, lower: Sequence[int]) -> list[int]:
    grain = parts.grain
    shares = apportion(total // grain, parts.free, [low // grain for low in lower], parts.fit(grain))
    return [share * grain for share in shares]


def _in_order(total: int, parts: Parts, lower: Sequence[int]) -> list[int]:
    """Fill one part after the other, beyond what each gets in any case."""
    rest = _fill(total - sum(lower), [room - low for room, low in zip(parts.room, lower, strict=True)])
    return [low + more for low, more in zip(lower, rest, strict=True)]


def _strips(shares: Sequence[int], even: Sequence[int], parts: Parts) -> bool:
    """Tell whether a part keeps too few free slots that would keep enough if shares were even."""
    return any(
        free - share < spares <= free - other
        for share, other, free, spares in zip(shares, even, parts.free, parts.spares, strict=True)
    )
