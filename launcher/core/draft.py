"""The next plan in the making: the cluster as it will be, one decision after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tlaunch.launcher.core.blame import Blame
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.plan import Fault, Plan, Seat
from tlaunch.launcher.core.policy import Failure
from tlaunch.topology import explain
from tlaunch.topology.growing import grow
from tlaunch.topology.model import Slot
from tlaunch.topology.regroup import GroupMove, regroup
from tlaunch.topology.replacement import Replacement
from tlaunch.topology.replacement import replace as find_spares
from tlaunch.topology.shrinking import Shrunk, shrink


class _Slots(Mapping[int, Slot]):
    """The slot of each rank: a view, as there may be many ranks and only a few are looked at."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self._seats = seats

    def __getitem__(self, rank: int) -> Slot:
        return self._seats[rank].slot

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._seats)))

    def __len__(self) -> int:
        return len(self._seats)


@dataclass(slots=True)
class Draft:
    """``cluster`` holds the tentative plan, with every decision so far; ranks that are given up still have their seats.

    ``settled``: what was decided for each rank that failed. ``given_up``: the ranks that go, with their replicas;
    ``replicas``: how many replicas go at least. ``moved``: the ranks that have moved as a group.
    """

    cluster: Cluster
    settled: dict[int, str] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    given_up: set[int] = field(default_factory=set)
    replicas: int = 0
    moved: set[int] = field(default_factory=set)
    _advice: Mapping[int, Slot] | None = None

    @property
    def plan(self) -> Plan:
        assert self.cluster.plan is not None, "before the first plan there is nothing to change"
        return self.cluster.plan

    def condemn(self, bad: Mapping[Slot, str]) -> None:
        """Use these slots no more."""
        self._change(replace(self.plan, bad=tuple(({**bad, **dict(self.plan.bad)}).items())))

    def charge(self, blame: Blame, slot: Slot) -> None:
        """Take note of whose fault a crash on ``slot`` is."""
        self._change(replace(self.plan, restarts=blame.restarts, faults=blame.faults))
        if blame.reason is not None:
            self.reasons.append(blame.reason)
        if blame.bad is not None:
            self.condemn({slot: blame.bad})

    def advised(self, failure: Failure, pending: Iterable[Failure]) -> Failure:
        """Return the failure with the spare that suits it best, seeing those that are not yet decided as well."""
        cluster, scope = self.cluster, self.cluster.spec.swap_scope
        if failure.kind == "crash":  # it has a slot: it takes part in no contest for spares
            return replace(failure, spare=cluster.spares.nearest(failure.slot, scope))
        lost = {each.rank: each.slot for each in (failure, *pending) if each.kind != "crash"}
        if self._advice is None:
            self._advice = self._replacement(lost).moves
        return replace(failure, spare=self._advice.get(failure.rank), group_move=self._group_move(failure.rank, lost))

    def _group_move(self, rank: int, lost: Mapping[int, Slot]) -> GroupMove | None:
        """Return where the innermost group of a rank could go as a whole. Not when one of its ranks is given up."""
        cluster, mesh = self.cluster, self.plan.mesh
        if self.given_up.intersection(mesh.group_of(rank)):
            return None
        return regroup(
            cluster.machine,
            mesh,
            _Slots(self.plan.seats),
            rank,
            lost=lost.keys() - self.moved,
            moves=self._advice or {},
            spares=cluster.spares,
            within=cluster.spec.swap_scope,
        )

    def restart(self, rank: int, nth: int | None) -> None:
        """Leave a rank where it is. ``nth``: which of the job's restarts that is, ``None`` if it does not count."""
        limit = self.cluster.spec.max_restarts
        slot = self.plan.seats[rank].slot
        told = "an operator's trial, which is not counted" if nth is None else f"restart {nth} of {limit}"
        self.settled[rank] = f"restart rank {rank} in place on {slot} ({told})"

    def swap(self, rank: int, to: Slot) -> None:
        """Move a rank to a spare."""
        if self._advice is not None and self._advice.get(rank) != to:
            self._advice = None
        self.settled[rank] = f"swap {self._move(rank, to)}"

    def move_group(self, rank: int, offer: GroupMove) -> None:
        """Move every rank of an innermost group."""
        self._advice = None
        self._reseat(offer.moves)
        self.settled[rank] = str(offer)
        self.moved |= offer.moves.keys()

    def give_up(self, rank: int, replicas: int) -> None:
        """Let a rank go with its replica, and as many replicas in all."""
        if self._advice is not None and rank in self._advice:
            self._advice = None
        self.given_up.add(rank)
        self.replicas = max(self.replicas, replicas)

    def shrunk(self, given_up: Collection[int] = (), replicas: int = 0) -> Shrunk | None:
        """Return the job without the ranks that are given up and these.

        At least ``replicas`` go; ``None`` when there are not so many or no replica survives.
        """
        mesh, machine, scope = self.plan.mesh, self.cluster.machine, self.cluster.spec.swap_scope
        seats = {seat.rank: seat.slot for seat in self.plan.seats}
        dead = self.given_up.union(given_up)
        return shrink(mesh, seats, dead, machine=machine, within=scope, at_least=max(self.replicas, replicas))

    def shrink(self) -> int:
        """Drop the replicas of the ranks that are given up, unless too few ranks are left. Returns how many are."""
        before, shrunk = self.plan, self.shrunk()
        left = 0 if shrunk is None else shrunk.mesh.size
        if shrunk is None or left < self.cluster.spec.min_world:
            return left
        seats = tuple(Seat(rank, slot, before.generation) for rank, slot in sorted(shrunk.seats.items()))
        self._change(replace(before, mesh=shrunk.mesh, seats=seats, faults=_renumbered(before, shrunk.seats)))
        for replica in shrunk.dropped:
            for rank in before.mesh.ranks_of(replica):
                self.settled.pop(rank, None)
        self.decisions.append(f"shrink {before.mesh} -> {shrunk.mesh}: {before.world_size} -> {left} ranks")
        self.reasons += shrunk.reasons
        self.given_up.clear()
        return left

    def grow(self, replicas: int) -> None:
        """Take back replicas on free slots, if they lie no worse there than those that the job has."""
        before = self.plan
        grown = grow(
            self.cluster.machine,
            before.mesh,
            {seat.rank: seat.slot for seat in before.seats},
            self.cluster.spares.slots,
            replicas=before.mesh.replicas + replicas,
        )
        if grown is None:
            self.reasons.append("the job does not grow: its groups would lie in more NVLink domains than they do now")
            return
        seats = tuple(Seat(rank, slot, before.generation) for rank, slot in grown.seats.items())
        self._change(replace(before, mesh=grown.mesh, seats=seats, faults=_renumbered(before, grown.seats)))
        self.decisions.append(f"grow {before.mesh} -> {grown.mesh}: {before.world_size} -> {grown.mesh.size} ranks")
        self.reasons += grown.reasons

    def drain(self) -> None:
        """Move ranks off drained slots as far as there are spares; the others stay where they are."""
        cluster, scope = self.cluster, self.cluster.spec.swap_scope
        waiting = {
            seat.rank: seat.slot
            for seat in self.plan.seats
            if seat.slot in cluster.drained and seat.rank not in cluster.displaced
        }
        found = self._replacement(waiting)
        for rank, slot in found.moves.items():
            self.decisions.append(f"drain {self._move(rank, slot)}")
            self.condemn({waiting[rank]: f"drained: {cluster.bad.get(waiting[rank], '')}"})
        for rank in found.unplaced:
            where = explain.no_spare(cluster.machine, rank, waiting[rank], scope)
            self.reasons.append(f"drain refused, {where}; it stays")

    def _replacement(self, failed: Mapping[int, Slot]) -> Replacement:
        """Find spares for some ranks at once, each as near to its mesh neighbours as can be."""
        cluster = self.cluster
        seats = _Slots(self.plan.seats)
        gone = self.given_up.difference(failed)
        return find_spares(
            cluster.machine,
            failed,
            cluster.spares,
            cluster.spec.swap_scope,
            mesh=self.plan.mesh,
            seats=seats,
            gone=gone,
        )

    def _move(self, rank: int, to: Slot) -> str:
        old = self.plan.seats[rank].slot
        self._reseat({rank: to})
        return explain.move(self.cluster.machine, rank, old, to, self.cluster.spares.by_rack)

    def _reseat(self, moves: Mapping[int, Slot]) -> None:
        seats = list(self.plan.seats)
        for rank, slot in moves.items():
            seats[rank] = replace(seats[rank], slot=slot)
        self._change(replace(self.plan, seats=tuple(seats)))

    def _change(self, plan: Plan) -> None:
        self.cluster = replace(self.cluster, plan=plan)


def _renumbered(before: Plan, seats: Mapping[int, Slot]) -> tuple[Fault, ...]:
    """Return the faults under the new numbers of their ranks, without those of ranks that are gone."""
    numbers = {slot: rank for rank, slot in seats.items()}
    new = {seat.rank: numbers[seat.slot] for seat in before.seats if seat.slot in numbers}
    return tuple(replace(fault, rank=new[fault.rank]) for fault in before.faults if fault.rank in new)
