"""What has happened: the difference between what the plan asks for and what the snapshot shows."""

from __future__ import annotations

from collections.abc import Iterator

from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.events import (
    AckOverdue,
    AllFinished,
    Event,
    NodeLost,
    NodesReady,
    RankFailed,
    RoomToGrow,
    SlotDrained,
    SlotFailed,
    StartOverdue,
    StopRequested,
)
from tlaunch.launcher.core.plan import Plan, Seat


def detect(cluster: Cluster) -> tuple[Event, ...]:
    """Return what has happened and is not yet in the plan, first causes first: hardware, then crashes by their time.

    Level-triggered: the same snapshot always gives the same events, until a plan has dealt with them. A rank that has
    ended with 0 needs nothing any more, so that nothing that happens to its slot is an event.
    """
    plan = cluster.plan
    if plan is not None and plan.result is not None:
        return ()
    if plan is not None and _finished(cluster, plan):
        return (AllFinished(),)
    stop: tuple[Event, ...] = (StopRequested(*cluster.stop),) if cluster.stop is not None else ()
    if plan is None:
        return (*stop, *_before_start(cluster))
    return (*stop, *_nodes(cluster, plan), *_slots(cluster, plan), *_crashes(cluster, plan), *_room(cluster))


def next_deadline(cluster: Cluster) -> float | None:
    """Return when to look again if nothing happens before, on the clock of ``cluster.now``; ``None`` for never."""
    plan = cluster.plan
    if plan is None:
        deadline = cluster.started_at + cluster.spec.start_timeout
    elif plan.result is None and _unacked(cluster, plan):
        deadline = cluster.planned_at + cluster.spec.ack_timeout
    else:
        return None
    # A deadline that has passed is an event already; waiting for it again would be a busy loop.
    return deadline if cluster.now < deadline else None


def _finished(cluster: Cluster, plan: Plan) -> bool:
    return all(_done(cluster, seat) for seat in plan.seats)


def _done(cluster: Cluster, seat: Seat) -> bool:
    ended = cluster.exits.get(seat.rank)
    return ended is not None and ended.ok


def _before_start(cluster: Cluster) -> Iterator[Event]:
    registered = len(cluster.alive)
    if registered >= cluster.spec.nodes:
        yield NodesReady()
    if cluster.now >= cluster.started_at + cluster.spec.start_timeout:
        yield StartOverdue(registered)


def _unacked(cluster: Cluster, plan: Plan) -> tuple[str, ...]:
    """Return the live nodes that have not applied the plan, of those that are to blame for it.

    The node of rank 0 says where the process group meets. While it does not, no other node can do anything.
    """
    late = tuple(node for node in plan.nodes if node in cluster.alive and node not in cluster.acked)
    return late[:1] if late[:1] == plan.nodes[:1] else late


def _nodes(cluster: Cluster, plan: Plan) -> Iterator[Event]:
    """Whole nodes: lost ones, and those that do not do as they are told."""
    ranks: dict[str, tuple[int, ...]] = {}
    for seat in plan.seats:
        if not _done(cluster, seat):
            ranks[seat.slot.node] = (*ranks.get(seat.slot.node, ()), seat.rank)
    for node in plan.nodes:
        if node in ranks and node not in cluster.alive:
            yield NodeLost(node, "its agent is gone", ranks[node])
    if cluster.now >= cluster.planned_at + cluster.spec.ack_timeout:
        for node in _unacked(cluster, plan):
            if node in ranks:
                yield AckOverdue(node, ranks[node])


def _slots(cluster: Cluster, plan: Plan) -> Iterator[Event]:
    """Single slots on live nodes: broken ones with a rank, then new ones without, then drained ones."""
    seats = [seat for seat in plan.seats if seat.slot.node in cluster.alive and not _done(cluster, seat)]
    for seat in seats:
        if seat.rank in cluster.displaced:
            yield SlotFailed(seat.slot, cluster.why_unusable(seat.slot), seat.rank)
    known = dict(plan.bad)
    for slot in sorted(cluster.bad.keys() - known.keys() - plan.by_slot.keys() - cluster.drained):
        if slot.node in cluster.alive and slot in cluster.machine.position:
            yield SlotFailed(slot, cluster.bad[slot])
    for seat in seats:
        if seat.slot in cluster.drained and seat.rank not in cluster.displaced:
            yield SlotDrained(seat.slot, cluster.bad.get(seat.slot, "drained"), seat.rank)


def _room(cluster: Cluster) -> Iterator[Event]:
    if cluster.room:
        yield RoomToGrow(cluster.room)


def _crashes(cluster: Cluster, plan: Plan) -> Iterator[Event]:
    """Processes that ended on slots that work, first causes first. Those that say that they have lost a peer come last.

    A time of a node whose clock is not known says nothing about others: nobody is blamed for it before the rest.
    """
    failed = {rank: ended for rank, ended in cluster.exits.items() if not ended.ok and rank not in cluster.displaced}
    seats = {seat.rank: seat for seat in plan.seats}
    # A process takes a while to end. A victim that fails after it may be seen to end before it.
    order: dict[int, tuple[bool, bool, float, int]] = {}
    for rank in failed.keys() & seats.keys():
        clock = cluster.clocks.get(seats[rank].slot.node)
        order[rank] = (failed[rank].lost_peer, clock is None, failed[rank].time + (clock or 0.0), rank)
    for rank in sorted(order, key=order.__getitem__):
        yield RankFailed(rank, seats[rank].slot, failed[rank])
