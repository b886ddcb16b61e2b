"""The exact assignment of items to classes of equivalent places, at the least total cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

Options = Sequence[tuple[int, int]]
"""Where an item may go: (cost, class), costs from 0 on, each class at most once."""


def assign(options: Sequence[Options], room: Sequence[int]) -> list[int | None]:
    """Return the class of each item, ``None`` for those that find none.

    As many items as possible are placed, and of all ways to do that the total cost is the least. ``room[c]``: how many
    items class ``c`` takes. Items that share one ``Options`` object are known to be alike, which saves time.

    The method is that of successive shortest paths with potentials (Tomizawa 1971; Edmonds and Karp 1972), on classes
    instead of places: an item that finds room at its best class costs no more than a look at its options.
    """
    nowhere = len(room)
    highest = max((cost for choices in options for cost, _ in choices), default=0)
    refused = highest * (len(options) + 1) + 1  # dearer than anything that it may take to place one item more
    costs: dict[int, dict[int, int]] = {}
    for choices in options:
        if id(choices) not in costs:
            costs[id(choices)] = {place: cost for cost, place in choices} | {nowhere: refused}
    flow = _Flow([costs[id(choices)] for choices in options], [*room, len(options)])
    for item in range(len(options)):
        flow.place(item)
    return [None if place == nowhere else place for place in flow.places]


@dataclass(slots=True)
class _Search:
    """The shortest way to each class. ``came[c]``: the item that would move to class ``c``, and where it is now."""

    came: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    best: dict[int, int] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)
    heap: list[tuple[int, int, int]] = field(default_factory=list)


class _Flow:
    """``costs[item]`` is the same object for items that are alike; ``places[item]`` its class, -1 before it has one."""

    def __init__(self, costs: Sequence[dict[int, int]], room: Sequence[int]) -> None:
        self._costs = costs
        self._room = room
        self._price = [0] * len(room)
        self._inside: list[list[int]] = [[] for _ in room]
        self.places = [-1] * len(costs)

    def place(self, item: int) -> None:
        """Place one item more; those before it move on where that is cheaper than to send this one farther."""
        search = _Search()
        self._reach(search, item, None, 0, 0)
        while True:
            far, hops, place = heappop(search.heap)
            if place in search.done:
                continue
            search.done[place] = far
            if len(self._inside[place]) < self._room[place]:
                break
            holders = {id(self._costs[holder]): holder for holder in reversed(self._inside[place])}
            for holder in holders.values():
                self._reach(search, holder, place, far, hops + 1)
        for each, at in search.done.items():
            self._price[each] += far - at
        self._shift(search, item, place)

    def _reach(self, search: _Search, item: int, home: int | None, far: int, hops: int) -> None:
        """Note which classes come into reach when ``item``, now at ``home``, goes somewhere else."""
        costs, price = self._costs[item], self._price
        base = far - (0 if home is None else costs[home] + price[home])
        for place, cost in costs.items():
            total = base + cost + price[place]
            if place not in search.done and (place not in search.best or total < search.best[place]):
                search.best[place] = total
                search.came[place] = (item, home)
                heappush(search.heap, (total, hops, place))

    def _shift(self, search: _Search, item: int, place: int) -> None:
        """Move every item on the way to ``place``, the class that has room, one class on."""
        home: int | None = place
        while home is not None:
            mover, before = search.came[home]
            self._inside[home].append(mover)
            self.places[mover] = home
            if before is not None:
                self._inside[before].remove(mover)
            home = before
