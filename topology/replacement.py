"""Which spare takes over from a failed slot: all failures at once, at the least total distance.

Each rank is drawn to its mesh neighbours that stay (:mod:`~tlaunch.topology.peers`). The sum over all ranks is the
least that is possible, and nobody stays without a spare who could have one. Among the assignments that are equally
good, ranks of one node go to one node, and whole spare nodes are not broken up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tlaunch.topology import explain
from tlaunch.topology.assignment import assign
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import REACH, Machine, Scope, Slot, distance
from tlaunch.topology.peers import Anchors, anchors
from tlaunch.topology.sparenodes import Region, SpareNodes


@dataclass(frozen=True, slots=True)
class Replacement:
    """``moves[rank]`` is its new slot; ``unplaced`` are the ranks for which the scope has no spare.

    ``spares`` are those left afterwards, in machine order; ``reasons`` has one sentence for each failed rank, and one
    for each innermost group that is no longer in one NVLink domain.
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


def replace(
    machine: Machine,
    failed: Mapping[int, Slot],
    spares: Iterable[Slot],
    within: Scope,
    *,
    mesh: Mesh | None = None,
    seats: Mapping[int, Slot] | None = None,
    gone: Collection[int] = (),
) -> Replacement:
    """Find new slots for ranks that failed at the same time (``failed[rank]`` is the slot that each had).

    ``mesh`` and ``seats`` (a slot for each rank of it) say who the neighbours of a rank are, without those that are
    ``gone`` as well; without them a rank is drawn to where it was. ``within`` is judged from where it was in any case.
    The same input always gives the same answer.

    Raises:
        TopologyError: a failed slot or a spare is none of the machine's.
    """
    lost = dict(sorted(failed.items()))
    for slot in lost.values():
        machine.node_of(slot)
    away = lost.keys() | gone
    drawn: dict[int, Anchors] = {rank: {old.node: 1} for rank, old in lost.items()}
    if mesh is not None and seats is not None:
        drawn = {rank: anchors(mesh, seats, rank, old, away) for rank, old in lost.items()}
    free = SpareNodes(machine, spares, lost.values(), {name for near in drawn.values() for name in near})
    chosen = _choose(machine, lost, drawn, free, within)

    units: dict[tuple[int, str], list[int]] = {}
    for rank, region in chosen.items():
        units.setdefault((region, lost[rank].node), []).append(rank)
    moves: dict[int, Slot] = {}
    for (region, _), ranks in sorted(units.items(), key=lambda unit: (-len(unit[1]), unit[1])):
        moves |= zip(ranks, free.take(free.regions[region], len(ranks)), strict=True)

    left = free.left()
    by_rack = free.by_rack()
    reasons = [
        explain.move(machine, rank, old, moves[rank], by_rack)
        if rank in moves
        else explain.no_spare(machine, rank, old, within)
        for rank, old in lost.items()
    ]
    if mesh is not None and seats is not None:
        reasons += explain.split_groups(machine, mesh, seats, moves)
    unplaced = tuple(rank for rank in lost if rank not in moves)
    return Replacement(dict(sorted(moves.items())), unplaced, left, tuple(reasons))


def cost(machine: Machine, near: Anchors, slot: Slot) -> int:
    """Return how far a slot is from all that draws a rank: the sum of weight times distance."""
    return _cost(machine, near, machine.node_of(slot).name)


def _cost(machine: Machine, near: Anchors, name: str) -> int:
    node, nodes = machine.by_name[name], machine.by_name
    return sum(weight * distance(nodes[anchor], node) for anchor, weight in near.items())


def _choose(
    machine: Machine, lost: Mapping[int, Slot], drawn: Mapping[int, Anchors], free: SpareNodes, within: Scope
) -> dict[int, int]:
    """Return the region of spares (its number) for each rank that finds one."""
    sizes = Counter(slot.node for slot in lost.values())
    finer = 4 * len(lost) + 1  # so that all preferences together weigh less than one step of distance
    known: dict[tuple[str, frozenset[tuple[str, int]]], list[tuple[int, int]]] = {}
    options: list[list[tuple[int, int]]] = []
    # The ranks of a node one after the other: each finds room where the one before it did.
    order = sorted(lost, key=lambda rank: (-sizes[lost[rank].node], lost[rank].node, rank))
    for rank in order:
        home = lost[rank].node
        key = (home, frozenset(drawn[rank].items()))
        if key not in known:
            found = [
                (_cost(machine, drawn[rank], region.names[0]), region)
                for region in free.candidates(home, drawn[rank], REACH[within], len(lost))
            ]
            known[key] = [
                (dear * finer + free.reluctance(region, sizes[home]), region.number)
                for dear, region in _cheapest(found, len(lost))
            ]
        options.append(known[key])
    places = assign(options, [region.room for region in free.regions])
    return {rank: place for rank, place in sorted(zip(order, places, strict=True)) if place is not None}


def _cheapest(found: list[tuple[int, Region]], count: int) -> list[tuple[int, Region]]:
    """Return the regions that together have the ``count`` cheapest slots.

    A rank never needs another one: as no more than ``count`` ranks are served, one of these slots is left for it.
    """
    found.sort(key=lambda option: (option[0], option[1].number))
    room = 0
    for index, (_, region) in enumerate(found):
        room += region.room
        if room >= count:
            last = found[index][0]
            return [option for option in found if option[0] <= last]
    return found
