"""How a job goes on with fewer ranks: by dropping whole data-parallel replicas."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tlaunch.topology import explain
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import REACH, Machine, Node, Scope, Slot, TopologyError, distance
from tlaunch.topology.replacement import Replacement, replace


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A job with fewer replicas.

    ``seats``: the ranks 0 .. mesh.size-1 and their slots. ``was[rank]``: the number that the process on that slot had
    before; a rank that is missing there needs a new process, because it takes over a slot from a dropped replica.
    ``freed``: the healthy slots that have no rank any more. ``dropped``: the replicas (old numbers) that are no more.
    """

    mesh: Mesh
    seats: Mapping[int, Slot]
    was: Mapping[int, int]
    freed: tuple[Slot, ...]
    dropped: tuple[int, ...]
    reasons: tuple[str, ...]


def shrink(
    mesh: Mesh,
    seats: Mapping[int, Slot],
    dead: Collection[int],
    *,
    machine: Machine | None = None,
    within: Scope = "any",
) -> Shrunk | None:
    """Drop replicas with dead ranks until the healthy slots of the dropped ones complete all others.

    ``within``: how far a slot of a dropped replica may be from the dead rank that it takes over, judged on ``machine``
    (without it, only the nodes are known).

    As few replicas as possible are dropped, and of them the most damaged. The last surviving replicas take the numbers
    of the dropped ones, so that with ``dp`` as the first dimension as few ranks as possible change their number.
    Returns ``None`` when no replica survives.
    """
    if seats.keys() != set(range(mesh.size)):
        raise TopologyError(
            f"mesh {mesh}: expected a slot for each of the ranks 0 to {mesh.size - 1}, got {len(seats)}"
        )
    job = _Job(mesh, seats, frozenset(dead), _members(mesh))
    machine = machine or _unknown_machine(seats)
    dropped: set[int] = set()
    while True:
        repair = job.repair(machine, dropped, within)
        if not repair.unplaced:
            break
        # Every drop frees or saves one replica's worth of slots, whichever it is: drop what costs most to repair.
        dropped.add(max(job.rivals(machine, repair, within), key=lambda replica: (job.damage(replica), replica)))
    return job.without(dropped, repair) if len(dropped) < mesh.replicas else None


def _members(mesh: Mesh) -> tuple[tuple[int, ...], ...]:
    """Return the ranks of each replica, in order."""
    members: list[list[int]] = [[] for _ in range(mesh.replicas)]
    for rank in range(mesh.size):
        members[mesh.replica_of(rank)].append(rank)
    return tuple(map(tuple, members))


def _unknown_machine(seats: Mapping[int, Slot]) -> Machine:
    """Return a machine of which only the nodes are known."""
    sizes: dict[str, int] = {}
    for _, slot in sorted(seats.items()):
        sizes[slot.node] = max(sizes.get(slot.node, 0), slot.index + 1)
    return Machine(tuple(Node(name, size) for name, size in sizes.items()))


@dataclass(frozen=True, slots=True)
class _Job:
    """The job before it shrinks. ``members[replica]`` are the ranks of a replica."""

    mesh: Mesh
    seats: Mapping[int, Slot]
    dead: frozenset[int]
    members: tuple[tuple[int, ...], ...]

    def damage(self, replica: int) -> int:
        return len(self.dead.intersection(self.members[replica]))

    def repair(self, machine: Machine, dropped: Collection[int], within: Scope) -> Replacement:
        """Let the healthy slots of the dropped replicas take over the dead ranks of the others."""
        broken = {rank: self.seats[rank] for rank in self.dead if self.mesh.replica_of(rank) not in dropped}
        healthy = [self.seats[rank] for index in dropped for rank in self.members[index] if rank not in self.dead]
        return replace(machine, broken, healthy, within)

    def rivals(self, machine: Machine, repair: Replacement, within: Scope) -> set[int]:
        """Return the replicas that want slots where those are short: one of them has to go."""
        short = {self.seats[rank].node for rank in repair.unplaced}
        return {
            self.mesh.replica_of(rank)
            for rank in (*repair.moves, *repair.unplaced)
            if any(
                distance(machine.node_of(self.seats[rank]), machine.by_name[node]) <= REACH[within] for node in short
            )
        }

    def without(self, dropped: Collection[int], repair: Replacement) -> Shrunk:
        smaller = self.mesh.resized(self.mesh.replicas - len(dropped))
        source = self._sources(dropped, smaller.replicas)
        before = {
            rank: old
            for replica, ranks in enumerate(_members(smaller))
            for rank, old in zip(ranks, self.members[source[replica]], strict=True)
        }
        renumbered = [f"replica {old} is now replica {new}" for new, old in sorted(source.items()) if new != old]
        return Shrunk(
            smaller,
            {rank: repair.moves.get(old, self.seats[old]) for rank, old in sorted(before.items())},
            {rank: old for rank, old in sorted(before.items()) if old not in self.dead},
            repair.spares,
            tuple(sorted(dropped)),
            (*self._drops(dropped, smaller), *renumbered, *repair.reasons),
        )

    def _drops(self, dropped: Collection[int], smaller: Mesh) -> tuple[str, ...]:
        if not dropped:
            return ()
        what = f"replica{'s' if len(dropped) > 1 else ''} {explain.ranks(dropped)} of {self.mesh}"
        return (f"dropped {what}: {self.mesh.size} -> {smaller.size} ranks",)

    def _sources(self, dropped: Collection[int], left: int) -> dict[int, int]:
        """Return which old replica each new one is: itself where it survives, else one from the end."""
        tail = [replica for replica in range(left, self.mesh.replicas) if replica not in dropped]
        holes = [replica for replica in sorted(dropped) if replica < left]
        return {replica: replica for replica in range(left)} | dict(zip(holes, tail, strict=True))
