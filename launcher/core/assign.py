"""What each node must run: a plan, as its agents see it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from tlaunch.launcher.core.plan import Plan, Result, Seat
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.model import Machine

MOST_NAMED = 64
"""How many changed nodes a head names at most: every agent reads it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The head of the current plan: all that an unchanged agent needs to know of it.

    ``since``: no process may be older than that generation, so that an agent for which nothing else has changed knows
    whether its ranks start again. ``changed``: the nodes that must read their assignment; ``None`` when they are many,
    and then all do.
    """

    number: int
    world_size: int
    group_world_size: int
    restarts: int
    max_restarts: int
    result: Result | None = None
    since: int = 0
    changed: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class AssignedSeat:
    """One rank on this node: its slot's index, its ``LOCAL_RANK``, and the generation its process belongs to."""

    rank: int
    index: int
    local_rank: int
    since: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one agent must run as of ``generation``, in which it last changed. ``seats``: in the order of local ranks.

    ``group_rank`` is torchrun's; ``None`` when the node has no ranks. ``bad`` are the indices of the slots on which
    not even a standby may wait.
    """

    generation: int
    group_rank: int | None
    seats: tuple[AssignedSeat, ...]
    bad: tuple[int, ...] = ()

    def under(self, head: Generation) -> Assignment:
        """Return what it means in a later generation: the processes that are too old for it start again."""
        seats = tuple(replace(seat, since=max(seat.since, head.since)) for seat in self.seats)
        return replace(self, seats=seats)


def generation_head(plan: Plan, spec: JobSpec, changed: Collection[str]) -> Generation:
    """Return the head of a plan. ``changed``: the nodes whose assignment changes with it."""
    return Generation(
        number=plan.generation,
        world_size=plan.world_size,
        group_world_size=len(plan.nodes),
        restarts=plan.restarts,
        max_restarts=spec.max_restarts,
        result=plan.result,
        since=_since(plan),
        changed=tuple(sorted(changed)) if len(changed) <= MOST_NAMED else None,
    )


def assignments(plan: Plan, machine: Machine, previous: Mapping[str, Assignment]) -> dict[str, Assignment]:
    """Return the assignment of every node of the machine, and of every one that had an assignment before.

    ``previous``: what the nodes were told before. A node for which nothing changes but what the head says gets an equal
    assignment, which need not be written. A node that the plan does not name is told so: should it come back, it runs
    nothing.
    """
    group_ranks = _group_ranks(plan, previous)
    since = _since(plan)
    seats: dict[str, list[Seat]] = {}
    for seat in plan.seats:
        seats.setdefault(seat.slot.node, []).append(seat)
    bad: dict[str, list[int]] = {}
    for slot, _ in plan.bad:
        bad.setdefault(slot.node, []).append(slot.index)

    wanted: dict[str, Assignment] = {}
    for name in dict.fromkeys((*machine.by_name, *previous)):
        given = Assignment(
            generation=plan.generation,
            group_rank=group_ranks.get(name),
            seats=_local(seats.get(name, [])),
            bad=tuple(sorted(bad.get(name, []))),
        )
        before = previous.get(name)
        if before is not None and _same(given, before, since):
            given = before
        wanted[name] = given
    return wanted


def _since(plan: Plan) -> int:
    """Return the generation that the oldest process of a plan belongs to."""
    return min((seat.since for seat in plan.seats), default=plan.generation)


def _same(given: Assignment, before: Assignment, since: int) -> bool:
    """Whether the assignment from before says the same under a head with this ``since``."""
    if (given.group_rank, given.bad, len(given.seats)) != (before.group_rank, before.bad, len(before.seats)):
        return False
    return all(
        (new.rank, new.index, new.since) == (old.rank, old.index, max(old.since, since))
        for new, old in zip(given.seats, before.seats, strict=True)
    )


def _group_ranks(plan: Plan, previous: Mapping[str, Assignment]) -> dict[str, int]:
    """Number the nodes with ranks. Rank 0's node is 0; the others keep the number that they have, where they can.

    The first plan numbers them in the order of their ranks, as torchrun does. A swap to a node that had no ranks must
    not give every node after it another number, and with it another assignment.
    """
    nodes = plan.nodes
    numbers: dict[str, int] = dict.fromkeys(nodes[:1], 0)
    taken = {0}
    for node in nodes[1:]:
        before = previous[node].group_rank if node in previous else None
        if before is not None and before < len(nodes) and before not in taken:
            numbers[node] = before
            taken.add(before)
    free = iter(number for number in range(len(nodes)) if number not in taken)
    return {node: numbers[node] if node in numbers else next(free) for node in nodes}


def _local(seats: list[Seat]) -> tuple[AssignedSeat, ...]:
    """Number the ranks of one node 0, 1, ... in the order of their slots."""
    ordered = sorted(seats, key=lambda seat: seat.slot.index)
    return tuple(
        AssignedSeat(seat.rank, seat.slot.index, local_rank, seat.since) for local_rank, seat in enumerate(ordered)
    )
