"""How plans stand in the store: most of them as what differs from an earlier one.

A plan names the slot of every rank, and a swap changes one or two of them. So that what is written grows with what has
changed and not with the job, a stored plan names a *base*, an earlier plan that stands there with all its seats, and
the seats that differ. Whoever reads needs these two and nothing in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tlaunch.errors import TlaunchError
from tlaunch.launcher.core.plan import Plan, Seat
from tlaunch.topology.model import Slot

MOST_MOVED = 256
"""How many seats may differ from the base before a plan becomes a base itself."""

KEPT_PLANS = 16
"""How many plans the store holds, and the bases of those."""


class NoBase(TlaunchError):
    """A stored plan cannot be read: the plan that it is based on does not stand in the store, or is another one."""


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan, and how to find its seats.

    ``plan`` is all of it but its seats. They are those of generation ``base`` where it is not the plan's own; else
    ``runs`` has them, in the order of ranks: a node and the indices of slots there. Then come the seats in ``moved``.
    No seat is from before generation ``since``.
    """

    plan: Plan
    base: int
    since: int
    runs: tuple[tuple[str, tuple[int, ...]], ...]
    moved: tuple[Seat, ...]


def stored(plan: Plan, base: Plan | None) -> StoredPlan:
    """Return how to store a plan. ``base``: the base of the plan before, if there is one."""
    since = min((seat.since for seat in plan.seats), default=plan.generation)
    bare = replace(plan, seats=())
    if base is not None and plan.seats and len(plan.seats) == len(base.seats):
        moved = _differing(plan.seats, base.seats, since)
        if len(moved) <= MOST_MOVED:
            return StoredPlan(bare, base.generation, since, (), moved)
    fresh = tuple(Seat(seat.rank, seat.slot, 0) for seat in plan.seats)
    return StoredPlan(bare, plan.generation, since, _runs(plan), _differing(plan.seats, fresh, since))


def restored(found: StoredPlan, base: Plan | None) -> Plan:
    """Return the plan. ``base``: the plan of generation ``found.base``, where it is another one. Raises ``NoBase``."""
    seats: list[Seat]
    if found.base == found.plan.generation:
        slots = (Slot(node, index) for node, indices in found.runs for index in indices)
        seats = [Seat(rank, slot, found.since) for rank, slot in enumerate(slots)]
    else:
        if base is None or base.generation != found.base:
            raise NoBase(f"generation {found.plan.generation} is based on {found.base}, which is not in the store")
        seats = [seat if seat.since >= found.since else replace(seat, since=found.since) for seat in base.seats]
    for seat in found.moved:
        if not 0 <= seat.rank < len(seats):
            raise NoBase(f"generation {found.plan.generation} moves rank {seat.rank}, of only {len(seats)} in its base")
        seats[seat.rank] = seat
    return replace(found.plan, seats=tuple(seats))


def outdated(bases: Mapping[int, int], generation: int) -> tuple[int, ...]:
    """Return the stored plans that nobody needs any more under this generation. ``bases``: the base of each plan."""
    kept = {number for number in bases if number > generation - KEPT_PLANS}
    needed = kept | {bases[number] for number in kept}
    return tuple(sorted(bases.keys() - needed))


def _runs(plan: Plan) -> tuple[tuple[str, tuple[int, ...]], ...]:
    runs: list[tuple[str, list[int]]] = []
    for seat in plan.seats:
        if not runs or runs[-1][0] != seat.slot.node:
            runs.append((seat.slot.node, []))
        runs[-1][1].append(seat.slot.index)
    return tuple((node, tuple(indices)) for node, indices in runs)


def _differing(seats: tuple[Seat, ...], base: tuple[Seat, ...], since: int) -> tuple[Seat, ...]:
    """Return the seats that do not follow from those of the base and ``since``."""
    return tuple(
        new for new, old in zip(seats, base, strict=True) if new.slot != old.slot or new.since != max(old.since, since)
    )
