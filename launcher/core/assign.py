"""What each node must run: a plan, as its agents see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tlaunch.launcher.core.plan import Plan, Result, Seat
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.model import Machine


@dataclass(frozen=True, slots=True)
class Generation:
    """The head of the current plan: all that an unchanged agent needs to know of it."""

    number: int
    world_size: int
    group_world_size: int
    restarts: int
    max_restarts: int
    result: Result | None = None


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


def generation_head(plan: Plan, spec: JobSpec) -> Generation:
    """Return the head of a plan."""
    return Generation(
        number=plan.generation,
        world_size=plan.world_size,
        group_world_size=len(plan.nodes),
        restarts=plan.restarts,
        max_restarts=spec.max_restarts,
        result=plan.result,
    )


def assignments(plan: Plan, machine: Machine, previous: Mapping[str, Assignment]) -> dict[str, Assignment]:
    """Return the assignment of every node of the machine, and of every one that had an assignment before.

    ``previous``: what the nodes were told before. A node for which nothing changes gets an equal assignment, so that
    its agent need not be woken. A node that the plan does not name is told so: should it come back, it runs nothing.
    """
    group_ranks = {node: index for index, node in enumerate(plan.nodes)}
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
        if before is not None and replace(given, generation=before.generation) == before:
            given = before
        wanted[name] = given
    return wanted


def _local(seats: list[Seat]) -> tuple[AssignedSeat, ...]:
    """Number the ranks of one node 0, 1, ... in the order of their slots."""
    ordered = sorted(seats, key=lambda seat: seat.slot.index)
    return tuple(
        AssignedSeat(seat.rank, seat.slot.index, local_rank, seat.since) for local_rank, seat in enumerate(ordered)
    )
