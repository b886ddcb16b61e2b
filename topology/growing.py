"""How a job that has shrunk gets replicas back when there are slots again: nobody who runs is moved."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tlaunch.topology import explain
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Slot, TopologyError
from tlaunch.topology.peers import spread
from tlaunch.topology.placement import place


@dataclass(frozen=True, slots=True)
class Grown:
    """A job with more replicas.

    ``seats``: the ranks 0 .. mesh.size-1 and their slots. ``was[rank]``: the number that the process on that slot had
    before; a rank that is missing there is new. ``added``: the new replicas. ``spares``: the free slots that are left.
    """

    mesh: Mesh
    seats: Mapping[int, Slot]
    was: Mapping[int, int]
    added: tuple[int, ...]
    spares: tuple[Slot, ...]
    reasons: tuple[str, ...]


def room_for(mesh: Mesh, free: int, *, replicas: int, spares: int = 0) -> int:
    """Return how many replicas may be added with ``free`` slots when ``spares`` stay and ``replicas`` is the most."""
    return max(min((free - spares) // mesh.replica_size, replicas - mesh.replicas), 0)


def grow(
    machine: Machine, mesh: Mesh, seats: Mapping[int, Slot], free: Collection[Slot], *, replicas: int, spares: int = 0
) -> Grown | None:
    """Add as many replicas as fit on the ``free`` slots, up to ``replicas`` in all, and keep ``spares`` of them free.

    The reverse of shrinking with no moves at all: every rank stays on its slot, and the replicas there are keep their
    numbers. The new ones are placed on the free slots as at the start of a job. Returns ``None`` when there is no room
    for one replica more, or when an innermost group of a new one would lie in more NVLink domains than any that is
    there: what is left over in many places is no replica.
    """
    if mesh.replicas == 1 < replicas and mesh.resized(2) == mesh:
        raise TopologyError(f"mesh {mesh}: has no replicas to add; expected a dimension dp")
    number = room_for(mesh, len(free), replicas=replicas, spares=spares)
    if not number:
        return None
    added = mesh.resized(number)
    placement = place(machine, added, spares, usable=free)
    if _worst(machine, added, placement.seats) > _worst(machine, mesh, seats):
        return None
    bigger = mesh.resized(mesh.replicas + number)
    was = {
        rank: old
        for replica in range(mesh.replicas)
        for rank, old in zip(bigger.ranks_of(replica), mesh.ranks_of(replica), strict=True)
    }
    fresh = {
        rank: placement.seats[place_of]
        for replica in range(number)
        for rank, place_of in zip(bigger.ranks_of(mesh.replicas + replica), added.ranks_of(replica), strict=True)
    }
    new = range(mesh.replicas, bigger.replicas)
    what = f"replica{'s' if number > 1 else ''} {explain.ranks(new)} of {bigger}"
    return Grown(
        bigger,
        dict(sorted(({rank: seats[old] for rank, old in was.items()} | fresh).items())),
        dict(sorted(was.items())),
        tuple(new),
        placement.spares,
        (f"added {what}: {mesh.size} -> {bigger.size} ranks; nobody moves", *placement.reasons),
    )


def _worst(machine: Machine, mesh: Mesh, seats: Mapping[int, Slot]) -> int:
    """Return in how many NVLink domains the most scattered innermost group lies."""
    if not mesh.grouped:
        return 1
    firsts = range(0, mesh.size, mesh.inner)
    return max(spread(machine, [seats[rank] for rank in mesh.group_of(first)]) for first in firsts)
