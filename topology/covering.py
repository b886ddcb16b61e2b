"""The fewest replicas to drop so that their slots make up for what each region lacks: a small covering problem."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

STEPS = 5_000
"""How far an exact search goes before the greedy answer is taken. Random failures need some tens of steps."""

R = TypeVar("R", bound=Hashable)
Offer = tuple[tuple[Hashable, int], ...]
"""What dropping a replica gives: slots by region, sorted by region."""


@dataclass(frozen=True, slots=True)
class Cover:
    """``chosen``: the replicas to drop. ``exact``: no smaller choice exists."""

    chosen: tuple[int, ...]
    exact: bool


def cover(lacks: Mapping[R, int], offers: Mapping[int, Mapping[R, int]], order: Sequence[int]) -> Cover:
    """Choose as few replicas as possible so that every region gets at least what it lacks.

    ``offers[replica]``: the slots that it has in each region that lacks any; who is missing has none. ``order``: the
    replicas, those that one would rather drop first. The offers of all together must suffice.

    Replicas with the same offer are one type, and regions that no replica connects are problems of their own. Where
    each replica lies in one region, taking the largest offers is exact. In general the problem is NP-hard: then a
    search with a lower bound follows, as far as ``STEPS``.
    """
    types: dict[Offer, list[int]] = {}
    for replica in order:
        if replica not in offers:
            continue
        offer = tuple(sorted((item for item in offers[replica].items() if item[1] and item[0] in lacks), key=str))
        if offer:
            types.setdefault(offer, []).append(replica)
    search = _Search(list(types), [len(replicas) for replicas in types.values()])
    best: list[int] = []
    exact = True
    for part in _parts({region: count for region, count in lacks.items() if count > 0}, types):
        found, proved = search.solve(part)
        best += found
        exact &= proved
    replicas = [iter(members) for members in types.values()]
    return Cover(tuple(sorted(next(replicas[kind]) for kind in best)), exact)


def _parts(needed: Mapping[Hashable, int], offers: Iterable[Offer]) -> list[dict[Hashable, int]]:
    """Return the regions with what they need, in parts that have no offer in common."""
    part = {region: [region] for region in needed}
    for offer in offers:
        first, *others = [region for region, _ in offer if region in part] or [None]
        for other in others:
            if part[other] is not part[first]:
                part[first] += part[other]
                part.update(dict.fromkeys(part[other], part[first]))
    return [
        {region: needed[region] for region in regions}
        for regions in {id(each): each for each in part.values()}.values()
    ]


class _Search:
    """Types of replicas, by number: what one of them offers, and how many there are."""

    def __init__(self, offers: Sequence[Offer], counts: Sequence[int]) -> None:
        self._offers = [dict(offer) for offer in offers]
        self._left = list(counts)
        self._by_region: dict[Hashable, list[int]] = {}
        for kind, offer in enumerate(offers):
            for region, _ in offer:
                self._by_region.setdefault(region, []).append(kind)
        self.steps = 0

    def solve(self, needed: Mapping[Hashable, int]) -> tuple[list[int], bool]:
        """Return types that suffice, and whether they are known to be as few as possible."""
        best = self.greedy(needed)
        if len(needed) == 1:
            return best, True
        for size in range(self.at_least(needed, frozenset()), len(best)):
            found = self.exactly(needed, size)
            if self.steps > STEPS:
                return best, False
            if found is not None:
                return found, True
        return best, True

    def greedy(self, needed: Mapping[Hashable, int]) -> list[int]:
        """Take what helps most, again and again."""
        left, rest = list(self._left), dict(needed)
        chosen: list[int] = []
        while rest:
            kinds = {kind for region in rest for kind in self._by_region[region] if left[kind]}
            best = max(kinds, key=lambda kind: (self._gain(kind, rest), -kind))
            left[best] -= 1
            rest = self._after(best, rest)
            chosen.append(best)
        return chosen

    def exactly(
        self, needed: Mapping[Hashable, int], size: int, banned: frozenset[int] = frozenset()
    ) -> list[int] | None:
        """Return ``size`` types or fewer that suffice, ``None`` when there are none (or the search grows too long)."""
        if not needed:
            return []
        self.steps += 1
        if self.steps > STEPS or self.at_least(needed, banned) > size:
            return None
        choices = {region: self._choices(region, banned) for region in needed}
        region = min(choices, key=lambda region: (len(choices[region]), str(region)))
        for kind in sorted(choices[region], key=lambda kind: (-self._gain(kind, needed), kind)):
            self._left[kind] -= 1
            found = self.exactly(self._after(kind, needed), size - 1, banned)
            self._left[kind] += 1
            if found is not None:
                return [kind, *found]
            banned |= {kind}  # all answers with it have been seen
        return None

    def at_least(self, needed: Mapping[Hashable, int], banned: frozenset[int]) -> int:
        """Return a lower bound for the number of replicas; more than there are when no choice suffices."""
        bound = 0
        for region, count in needed.items():
            rest, number = count, 0
            sizes = sorted((self._offers[kind][region], self._left[kind]) for kind in self._choices(region, banned))
            while rest > 0 and sizes:
                size, replicas = sizes.pop()
                take = min(replicas, -(-rest // size))
                rest, number = rest - take * size, number + take
            if rest > 0:
                return sum(self._left) + 1
            bound = max(bound, number)
        return bound

    def _choices(self, region: Hashable, banned: frozenset[int]) -> list[int]:
        return [kind for kind in self._by_region.get(region, ()) if self._left[kind] and kind not in banned]

    def _gain(self, kind: int, needed: Mapping[Hashable, int]) -> int:
        return sum(min(count, needed.get(region, 0)) for region, count in self._offers[kind].items())

    def _after(self, kind: int, needed: Mapping[Hashable, int]) -> dict[Hashable, int]:
        offer = self._offers[kind]
        rest = {region: count - offer.get(region, 0) for region, count in needed.items()}
        return {region: count for region, count in rest.items() if count > 0}
