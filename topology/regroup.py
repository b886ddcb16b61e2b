"""Moving a whole innermost group to another NVLink domain, when its own has no spare for a lost rank.

The only thing here that moves ranks that run. So it is an offer with its cost, and nobody takes it but a policy that
says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tlaunch.topology import explain
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import REACH, Machine, Scope, Slot, distance
from tlaunch.topology.peers import spread
from tlaunch.topology.replacement import replace


@dataclass(frozen=True, slots=True)
class GroupMove:
    """An offer to move every rank of an innermost group.

    ``moves[rank]`` is its new slot, all of them in one NVLink domain. ``healthy``: the ranks that run and would have to
    move with the others: the cost. ``before``: in how many domains the group would lie if only the lost ranks moved,
    ``None`` when the scope has no spare for them.
    """

    name: str
    moves: Mapping[int, Slot]
    healthy: tuple[int, ...]
    before: int | None

    def __str__(self) -> str:
        node = next(iter(self.moves.values())).node
        group = f"ranks {explain.ranks(self.moves)} ({self.name}={len(self.moves)})"
        gain = "where there is a spare for each" if self.before is None else f"instead of {self.before} domains"
        return f"move {group} to the NVLink domain of {node}, {gain}; {len(self.healthy)} of them are healthy"


def regroup(
    machine: Machine,
    mesh: Mesh,
    seats: Mapping[int, Slot],
    rank: int,
    *,
    lost: Collection[int],
    moves: Mapping[int, Slot],
    spares: Iterable[Slot],
    within: Scope,
) -> GroupMove | None:
    """Return where the innermost group of ``rank`` could go as a whole, if that would restore its locality.

    ``lost``: the ranks that need a new slot, ``moves``: where those go that find one. ``spares``: all free slots. The
    nearest domain with room for the group is offered, in which each rank stays within the scope around where it is.
    ``None`` when the group is as well off where it is, or when there is no such domain.
    """
    if not mesh.grouped:
        return None
    name, size = mesh.dims[-1]
    group = mesh.group_of(rank)
    staying = [seats[member] for member in group if member not in lost]
    found = [moves[member] for member in group if member in moves]
    served = all(member in moves for member in group if member in lost)
    if not staying or (served and spread(machine, [*staying, *found]) == spread(machine, staying)):
        return None
    taken = {slot for member, slot in moves.items() if member not in group}
    for domain in _by_distance(machine, staying[0], [slot for slot in spares if slot not in taken], size, within):
        here = {member: seats[member] for member in group}
        result = replace(machine, here, domain, within, mesh=mesh, seats=seats, gone=lost)
        if not result.unplaced:
            healthy = tuple(member for member in group if member not in lost)
            return GroupMove(name, result.moves, healthy, spread(machine, [*staying, *found]) if served else None)
    return None


def _by_distance(machine: Machine, home: Slot, free: Iterable[Slot], size: int, within: Scope) -> list[list[Slot]]:
    """Return the free slots of each domain with at least ``size`` of them, the nearest domains first."""
    domains: dict[tuple[str, str], list[Slot]] = {}
    for slot in free:
        domains.setdefault(machine.node_of(slot).domain_key, []).append(slot)
    origin = machine.node_of(home)
    large = [(distance(origin, machine.node_of(slots[0])), slots) for slots in domains.values() if len(slots) >= size]
    return [slots for far, slots in sorted(large, key=lambda domain: domain[0]) if far <= REACH[within]]
