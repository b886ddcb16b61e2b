"""How a job goes on with fewer ranks: by dropping whole data-parallel replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tlaunch.topology import explain
from tlaunch.topology.covering import Cover, cover
from tlaunch.topology.mesh import REPLICA_DIMENSION, Mesh
from tlaunch.topology.model import Machine, Node, Scope, Slot, TopologyError
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
    at_least: int = 0,
) -> Shrunk | None:
    """Drop replicas until the healthy slots of the dropped ones complete all others.

    ``within``: how far a slot of a dropped replica may be from the dead rank that it takes over, judged on ``machine``
    (without it, only the nodes are known). ``at_least``: how many replicas are to go in any case.

    As few replicas as possible are dropped, and where there is a choice the most damaged, then the last ones. The last
    surviving replicas take the numbers of the dropped ones, so that with ``dp`` as the first dimension as few ranks as
    possible change their number. Returns ``None`` when no replica survives.
    """
    if len(seats) != mesh.size or not all(rank in seats for rank in range(mesh.size)):
        raise TopologyError(
            f"mesh {mesh}: expected a slot for each of the ranks 0 to {mesh.size - 1}, got {len(seats)}"
        )
    job = _Job(mesh, seats, frozenset(dead))
    machine = machine or _unknown_machine(seats)
    damage = Counter(mesh.replica_of(rank) for rank in job.dead)
    order = sorted(damage, key=lambda replica: (-damage[replica], -replica))
    order += [replica for replica in reversed(range(mesh.replicas)) if replica not in damage]
    choice = job.choose(machine, order, within)
    dropped = set(choice.chosen)
    for replica in order:
        if len(dropped) >= at_least:
            break
        dropped.add(replica)
    repair = job.repair(machine, dropped, within)
    while repair.unplaced:  # only on a machine whose levels are no tree: a region is then less than what is in reach
        dropped.add(mesh.replica_of(repair.unplaced[0]))
        repair = job.repair(machine, dropped, within)
    if len(dropped) >= mesh.replicas:
        return None
    return job.without(dropped, repair, exact=choice.exact)


def _unknown_machine(seats: Mapping[int, Slot]) -> Machine:
    """Return a machine of which only the nodes are known."""
    sizes: dict[str, int] = {}
    for _, slot in sorted(seats.items()):
        sizes[slot.node] = max(sizes.get(slot.node, 0), slot.index + 1)
    return Machine(tuple(Node(name, size) for name, size in sizes.items()))


@dataclass(frozen=True, slots=True)
class _Job:
    """The job before it shrinks."""

    mesh: Mesh
    seats: Mapping[int, Slot]
    dead: frozenset[int]

    def choose(self, machine: Machine, order: Sequence[int], within: Scope) -> Cover:
        """Return the replicas to drop, those first in ``order`` where there is a choice.

        In each region the dead ranks of the replicas that stay need no more than the healthy slots of those that go.
        That is: the slots of those that go, dead ones included, are at least as many as all dead ranks of the region.
        """
        if within == "any":
            return Cover(tuple(sorted(order[: -(-len(self.dead) // self.mesh.replica_size)])), exact=True)
        regions, index = machine.regions[within], machine.node_index
        lacks = Counter(regions[index[machine.node_of(self.seats[rank]).name]] for rank in self.dead)
        here = {node.name: region for node, region in zip(machine, regions, strict=True) if region in lacks}
        offers: dict[int, Counter[int]] = {}
        for rank in [rank for rank, slot in self.seats.items() if slot.node in here]:
            offers.setdefault(self.mesh.replica_of(rank), Counter())[here[self.seats[rank].node]] += 1
        return cover(lacks, offers, order)

    def repair(self, machine: Machine, dropped: Collection[int], within: Scope) -> Replacement:
        """Let the healthy slots of the dropped replicas take over the dead ranks of the others."""
        gone = {rank for replica in dropped for rank in self.mesh.ranks_of(replica)}
        broken = {rank: self.seats[rank] for rank in self.dead if rank not in gone}
        healthy = [self.seats[rank] for rank in gone if rank not in self.dead]
        return replace(machine, broken, healthy, within, mesh=self.mesh, seats=self.seats, gone=gone)

    def without(self, dropped: Collection[int], repair: Replacement, *, exact: bool) -> Shrunk:
        smaller = self.mesh.resized(self.mesh.replicas - len(dropped))
        source = self._sources(dropped, smaller.replicas)
        before = self._before(smaller, source)
        renumbered = [f"replica {old} is now replica {new}" for new, old in sorted(source.items())]
        return Shrunk(
            smaller,
            {rank: repair.moves.get(old) or self.seats[old] for rank, old in enumerate(before)},
            {rank: old for rank, old in enumerate(before) if old not in self.dead},
            repair.spares,
            tuple(sorted(dropped)),
            (*self._drops(dropped, smaller, exact=exact), *renumbered, *repair.reasons),
        )

    def _before(self, smaller: Mesh, source: Mapping[int, int]) -> list[int]:
        """Return the old number of each new rank."""
        before = list(range(smaller.size))
        all_change = smaller.dims[0][0] != REPLICA_DIMENSION
        for new in range(smaller.replicas) if all_change else source:
            for rank, old in zip(smaller.ranks_of(new), self.mesh.ranks_of(source.get(new, new)), strict=True):
                before[rank] = old
        return before

    def _drops(self, dropped: Collection[int], smaller: Mesh, *, exact: bool) -> tuple[str, ...]:
        if not dropped:
            return ()
        what = f"replica{'s' if len(dropped) > 1 else ''} {explain.ranks(dropped)} of {self.mesh}"
        hedge = "" if exact else "; a better choice may exist, the search for it would take too long"
        return (f"dropped {what}: {self.mesh.size} -> {smaller.size} ranks{hedge}",)

    def _sources(self, dropped: Collection[int], left: int) -> dict[int, int]:
        """Return which old replica takes each number that has become free: those from the end, in order."""
        tail = [replica for replica in range(left, self.mesh.replicas) if replica not in dropped]
        holes = [replica for replica in sorted(dropped) if replica < left]
        return dict(zip(holes, tail, strict=True))
