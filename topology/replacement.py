"""Which spare takes over from a failed slot: the nearest one, without breaking up whole spare nodes needlessly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tlaunch.topology import explain
from tlaunch.topology.model import REACH, Machine, Node, Scope, Slot, distance


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
        waiting.setdefault(failed[rank].node, []).append(rank)

    moves: dict[int, Slot] = {}
    reasons: dict[int, str] = {}
    while waiting:
        needs = {
            name: free.needed_distance(machine.by_name[name], len(ranks), limit) for name, ranks in waiting.items()
        }
        name = min(waiting, key=lambda name: (needs[name], -len(waiting[name]), waiting[name][0]))
        ranks = waiting.pop(name)
        for rank, slot in zip(
            ranks, free.take(machine.by_name[name], len(ranks), min(needs[name], limit)), strict=False
        ):
            moves[rank] = slot
            reasons[rank] = explain.move(machine, rank, failed[rank], slot, free.slots)
    unplaced = tuple(rank for rank in sorted(failed) if rank not in moves)
    reasons |= {rank: explain.no_spare(machine, rank, failed[rank], within) for rank in unplaced}
    return Replacement(moves, unplaced, free.slots, tuple(reasons[rank] for rank in sorted(reasons)))


class _Free:
    """The spares that are not yet taken, by node."""

    def __init__(self, machine: Machine, spares: Iterable[Slot]) -> None:
        self._machine = machine
        self._order = {node.name: index for index, node in enumerate(machine)}
        self._by_node: dict[str, list[Slot]] = {}
        for slot in sorted(spares, key=machine.position.__getitem__):
            self._by_node.setdefault(slot.node, []).append(slot)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(slot for slots in self._by_node.values() for slot in slots)

    def needed_distance(self, home: Node, count: int, limit: int) -> int:
        """Return the smallest distance within which there are ``count`` spares, ``limit + 1`` if there is none."""
        for reach in range(1, limit + 1):
            if sum(len(self._by_node[node.name]) for node in self._within(home, reach)) >= count:
                return reach
        return limit + 1

    def take(self, home: Node, count: int, reach: int) -> Sequence[Slot]:
        """Take up to ``count`` spares within ``reach``: from one node if possible, else the nearest, fullest."""
        taken: list[Slot] = []
        while len(taken) < count:
            missing = count - len(taken)
            nodes = self._within(home, reach)
            if not nodes:
                break
            whole = [node for node in nodes if len(self._by_node[node.name]) >= missing]
            node = min(whole, key=lambda node: self._fit(home, node, missing)) if whole else self._fullest(home, nodes)
            slots = self._by_node.pop(node.name)
            taken += slots[:missing]
            if slots[missing:]:
                self._by_node[node.name] = slots[missing:]
        return taken

    def _within(self, home: Node, reach: int) -> list[Node]:
        nodes = (self._machine.by_name[name] for name in self._by_node)
        return [node for node in nodes if distance(home, node) <= reach]

    def _fit(self, home: Node, node: Node, missing: int) -> tuple[int, bool, int, int]:
        free = len(self._by_node[node.name])
        breaks_up = free == node.slots and free > missing
        return distance(home, node), breaks_up, free, self._order[node.name]

    def _fullest(self, home: Node, nodes: Iterable[Node]) -> Node:
        return min(
            nodes, key=lambda node: (distance(home, node), -len(self._by_node[node.name]), self._order[node.name])
        )
