"""Which spare takes over from a failed slot: the nearest one, without breaking up whole spare nodes needlessly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tlaunch.topology import explain
from tlaunch.topology.model import REACH, Machine, Node, Scope, Slot, TopologyError, distance


@dataclass(frozen=True, slots=True)
class Replacement:
    """``moves[rank]`` is its new slot; ``unplaced`` are the ranks for which the scope has no spare.

    ``spares`` are those left afterwards, in machine order; ``reasons`` has one sentence for each failed rank.
    """

    moves: Mapping[int, Slot]
    unplaced: tuple[int, ...]
    spares: tuple[Slot, ...]
    reasons: tuple[str, ...]


def nearest(machine: Machine, slot: Slot, spares: Iterable[Slot], within: Scope) -> Slot | None:
    """Return the nearest of ``spares`` inside the scope around ``slot``, or ``None`` when there is none.

    Of equally near ones: one on a node that is already broken up, on the node with the fewest spares, the first.
    """
    return replace(machine, {0: slot}, spares, within).moves.get(0)


def replace(machine: Machine, failed: Mapping[int, Slot], spares: Iterable[Slot], within: Scope) -> Replacement:
    """Find new slots for ranks that failed at the same time (``failed[rank]`` is the slot that each had).

    Ranks of one node stay together on one node, if one with enough spares is no farther away than they must go anyhow.
    Whoever finds its place nearest is served first. The same input always gives the same answer.
    """
    free = _Free(machine, frozenset(spares).difference(failed.values()))
    limit = REACH[within]
    waiting: dict[str, list[int]] = {}
    for rank in sorted(failed):
        waiting.setdefault(machine.node_of(failed[rank]).name, []).append(rank)

    moves: dict[int, Slot] = {}
    while waiting:
        needs = {name: free.needed_distance(name, len(ranks), limit) for name, ranks in waiting.items()}
        name = min(waiting, key=lambda name: (needs[name], -len(waiting[name]), waiting[name][0]))
        ranks = waiting.pop(name)
        moves |= zip(ranks, free.take(name, len(ranks), min(needs[name], limit)), strict=False)

    spares = free.slots
    reasons = (
        explain.move(machine, rank, old, moves[rank], spares)
        if rank in moves
        else explain.no_spare(machine, rank, old, within)
        for rank, old in sorted(failed.items())
    )
    unplaced = tuple(rank for rank in sorted(failed) if rank not in moves)
    return Replacement(dict(sorted(moves.items())), unplaced, spares, tuple(reasons))


class _Free:
    """The spares that are not yet taken, by node."""

    def __init__(self, machine: Machine, spares: Iterable[Slot]) -> None:
        self._machine = machine
        self._order = {node.name: index for index, node in enumerate(machine)}
        self._by_node: dict[str, list[Slot]] = {}
        spares = frozenset(spares)
        for slot in spares - machine.position.keys():
            raise TopologyError(f"spare {slot}: not a slot of the machine")
        for slot in sorted(spares, key=machine.position.__getitem__):
            self._by_node.setdefault(slot.node, []).append(slot)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(slot for slots in self._by_node.values() for slot in slots)

    def needed_distance(self, home: str, count: int, limit: int) -> int:
        """Return the smallest distance within which there are ``count`` spares, ``limit + 1`` if there is none."""
        for reach in range(1, limit + 1):
            if sum(len(self._by_node[node.name]) for node in self._within(home, reach)) >= count:
                return reach
        return limit + 1

    def take(self, home: str, count: int, reach: int) -> Sequence[Slot]:
        """Take up to ``count`` spares within ``reach``: from one node if possible, else the nearest, fullest."""
        taken: list[Slot] = []
        while len(taken) < count and (nodes := self._within(home, reach)):
            missing = count - len(taken)
            node = min(nodes, key=lambda node: self._preference(home, node, missing))
            slots = self._by_node[node.name]
            taken += slots[:missing]
            self._by_node[node.name] = slots[missing:]
        return taken

    def _within(self, home: str, reach: int) -> list[Node]:
        near = self._machine.by_name[home]
        nodes = (self._machine.by_name[name] for name, slots in self._by_node.items() if slots)
        return [node for node in nodes if distance(near, node) <= reach]

    def _preference(self, home: str, node: Node, missing: int) -> tuple[bool, int, bool, int, int]:
        """Rank the nodes to take ``missing`` spares from, best first."""
        free = len(self._by_node[node.name])
        enough = free >= missing
        breaks_up = free == node.slots and free > missing
        far = distance(self._machine.by_name[home], node)
        return not enough, far, breaks_up, free if enough else -free, self._order[node.name]
