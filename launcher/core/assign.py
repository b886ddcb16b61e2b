"""What each node must run: a plan, as its agents see it."""

from __future__ import annotations

from dataclasses import dataclass

from tlaunch.launcher.core.plan import Result


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
    """What one agent must run as of ``generation``. ``group_rank`` is torchrun's; ``None`` when it has no ranks.

    ``bad`` are the indices of the slots on which not even a standby may wait.
    """

    generation: int
    group_rank: int | None
    seats: tuple[AssignedSeat, ...]
    bad: tuple[int, ...] = ()
