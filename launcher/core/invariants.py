"""What is true of every plan, whatever a policy says. Checked on each plan before it is used, and by the tests."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator

from tlaunch.errors import TlaunchError
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.plan import Plan, Seat
from tlaunch.topology.model import REACH, Slot, distance
from tlaunch.topology.peers import spread


class InvariantBroken(TlaunchError):
    """A plan is wrong. It is not used; the job goes on under the plan before it."""


def check(cluster: Cluster, plan: Plan) -> None:
    """Raise ``InvariantBroken`` when ``plan`` may not follow the plan of ``cluster``."""
    broken = next(violations(cluster, plan), None)
    if broken is not None:
        raise InvariantBroken(f"generation {plan.generation} is wrong and is not used: {broken}")


def violations(cluster: Cluster, plan: Plan) -> Iterator[str]:
    """Yield a sentence for each invariant that ``plan`` breaks as the successor of the plan of ``cluster``."""
    before = cluster.plan
    generation = 1 if before is None else before.generation + 1
    if plan.generation != generation:
        yield f"its number is not {generation}"
    if before is not None and before.result is not None:
        yield "the job has ended"
    if plan.result is not None:
        if plan.seats:
            yield "it has a result and ranks"
        return
    yield from _seats(cluster, plan)
    if before is None:
        return
    if not dict(before.bad).keys() <= dict(plan.bad).keys():
        yield "a bad slot is forgotten"
    if not _fewest_restarts(before, plan) <= plan.restarts <= _most_restarts(before, cluster.spec.max_restarts):
        yield f"restarts go from {before.restarts} to {plan.restarts}"
    if plan.mesh == before.mesh:
        yield from _moves(cluster, before, plan)
    elif plan.mesh.replicas > before.mesh.replicas:
        yield from _growing(cluster, before, plan)
    else:
        yield from _shrinking(cluster, before, plan)


def _seats(cluster: Cluster, plan: Plan) -> Iterator[str]:
    if [seat.rank for seat in plan.seats] != list(range(plan.mesh.size)):
        yield f"its ranks are not 0 to {plan.mesh.size - 1}"
    if len(plan.by_slot) != len(plan.seats):
        yield "two ranks share a slot"
    bad = dict(plan.bad)
    for seat in plan.seats:
        stays = seat.slot in cluster.drained and cluster.plan is not None and seat.slot in cluster.plan.by_slot
        healthy = seat.slot in cluster.usable or (stays and seat.slot.node in cluster.alive)
        if not healthy or seat.slot in bad:
            yield f"rank {seat.rank} is on {seat.slot}, which cannot be used"
        if not 1 <= seat.since <= plan.generation:
            yield f"rank {seat.rank} starts in generation {seat.since}"


def _fewest_restarts(before: Plan, plan: Plan) -> int:
    """What was counted because of a slot is forgiven when the slot is used no more."""
    given_up = dict(plan.bad).keys() - dict(before.bad).keys()
    return before.restarts - sum(fault.counted and fault.slot in given_up for fault in before.faults)


def _most_restarts(before: Plan, limit: int) -> int:
    """One more, and what was forgiven when it turns out to be the script's after all."""
    return min(limit, before.restarts + 1 + sum(not fault.counted for fault in before.faults))


def _moves(cluster: Cluster, before: Plan, plan: Plan) -> Iterator[str]:
    """Only ranks that were affected move, and not too far."""
    bad = dict(plan.bad)
    affected = {*cluster.displaced, *_crashed(cluster), *(seat.rank for seat in before.seats if seat.slot in bad)}
    for old, new in _same_ranks(before, plan):
        if (
            old.slot != new.slot
            and old.rank not in affected
            and not _with_its_group(cluster, before, plan, old, affected)
        ):
            yield f"rank {old.rank} leaves {old.slot} without need"
        if old.slot != new.slot and not _in_scope(cluster, old.slot, new.slot):
            yield f"rank {old.rank} goes from {old.slot} to {new.slot}, outside --swap-scope {cluster.spec.swap_scope}"


def _same_ranks(before: Plan, plan: Plan) -> Iterator[tuple[Seat, Seat]]:
    """Yield the seats of each rank before and after, whose number is another one when the job has grown."""
    if plan.mesh == before.mesh:
        yield from zip(before.seats, plan.seats, strict=True)
        return
    for replica in range(before.mesh.replicas):
        for old, new in zip(before.mesh.ranks_of(replica), plan.mesh.ranks_of(replica), strict=True):
            yield before.seats[old], plan.seats[new]


def _growing(cluster: Cluster, before: Plan, plan: Plan) -> Iterator[str]:
    """Whole replicas come, no more than the job began with, and everybody stays."""
    replicas = plan.mesh.replicas
    if replicas > cluster.spec.mesh.replicas or plan.mesh != before.mesh.resized(replicas):
        yield f"{plan.mesh} is not {before.mesh} with replicas that were lost"
    else:
        yield from _moves(cluster, before, plan)


def _with_its_group(cluster: Cluster, before: Plan, plan: Plan, old: Seat, affected: Container[int]) -> bool:
    """Tell whether a healthy rank moves because an affected one does, with their whole group and into one domain."""
    if not plan.mesh.grouped:
        return False
    group = before.mesh.group_of(old.rank)
    now = {seat.rank: new.slot for seat, new in _same_ranks(before, plan) if seat.rank in group}
    return any(member in affected for member in group) and spread(cluster.machine, now.values()) == 1


def _shrinking(cluster: Cluster, before: Plan, plan: Plan) -> Iterator[str]:
    """Whole replicas go, not too many, and the ranks of the others stay on their slots."""
    replicas = plan.mesh.replicas
    if not 1 <= replicas < before.mesh.replicas or plan.mesh != before.mesh.resized(replicas):
        yield f"{plan.mesh} is not {before.mesh} with fewer replicas"
    if plan.world_size < cluster.spec.min_world:
        yield f"{plan.world_size} ranks are less than --min-world {cluster.spec.min_world}"
    bad, crashed = dict(plan.bad), _crashed(cluster)
    healthy = {seat.rank for seat in before.seats if seat.slot in cluster.usable and seat.slot not in bad} - crashed
    staying = len(healthy) - _moved_in_groups(cluster, before, plan, healthy)
    kept = len(before.by_slot.keys() & plan.by_slot.keys())
    if kept < staying - (before.world_size - plan.world_size):
        yield "ranks of replicas that stay are moved without need"


def _moved_in_groups(cluster: Cluster, before: Plan, plan: Plan, healthy: Collection[int]) -> int:
    """Return how many healthy ranks may have moved with a lost one before the job shrank: one group for each new one.

    A group is new when all of its slots are, and they lie in one domain.
    """
    if not before.mesh.grouped:
        return 0
    size, now = before.mesh.inner, plan.by_slot
    groups = [range(first, first + size) for first in range(0, before.world_size, size)]
    left = [group for group in groups if not any(before.seats[rank].slot in now for rank in group)]
    new = [[seat.slot for seat in plan.seats[first : first + size]] for first in range(0, plan.world_size, size)]
    arrived = sum(spread(cluster.machine, group) == 1 for group in new if before.by_slot.keys().isdisjoint(group))
    damaged = [sum(rank in healthy for rank in group) for group in left]
    return sum(sorted((number for number in damaged if number < size), reverse=True)[:arrived])


def _crashed(cluster: Cluster) -> frozenset[int]:
    return frozenset(rank for rank, ended in cluster.exits.items() if not ended.ok)


def _in_scope(cluster: Cluster, old: Slot, new: Slot) -> bool:
    here, there = cluster.machine.node_of(old), cluster.machine.node_of(new)
    return distance(here, there) <= REACH[cluster.spec.swap_scope]
