"""A plan: one immutable generation of the map from ranks to slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tlaunch.launcher.core.events import Event
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Slot


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank on its slot. ``since`` is the generation in which the rank's present process was started.

    An agent that runs a process for (rank, since) leaves it alone; anything else is ended and started anew.
    """

    rank: int
    slot: Slot
    since: int


@dataclass(frozen=True, slots=True)
class Result:
    """How the job ended: the exit code of the launcher and one sentence. ``traceback`` is that of the first failure."""

    code: int
    reason: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A crash that was the first cause of a generation's end, as far as later plans have to know of it.

    ``way``: how the process failed, in words that are the same on every try. ``ran``: for how many seconds it had run.
    ``blamed``: it counts as a failure of the job's own code, or its slot is taken for bad hardware; and *after all* it
    was the script, when the same happened elsewhere after that.
    """

    rank: int
    slot: Slot
    way: str
    ran: float
    blamed: Literal["script", "slot", "script after all"] = "script"

    @property
    def counted(self) -> bool:
        return self.blamed != "slot"


@dataclass(frozen=True)
class Plan:
    """One generation: ``seats`` sorted by rank, 0 .. world_size-1. A plan with a ``result`` ends the job and has none.

    ``bad`` are the slots that are not used any more, with the reason; ``restarts`` counts failures of the job's own
    code, and ``faults`` are the latest of them and those that slots were blamed for, oldest first. ``events`` led to
    this plan; ``decisions`` says what was decided, a sentence each, and ``reasons`` why.
    """

    generation: int
    mesh: Mesh
    seats: tuple[Seat, ...]
    bad: tuple[tuple[Slot, str], ...] = ()
    restarts: int = 0
    faults: tuple[Fault, ...] = ()
    result: Result | None = None
    events: tuple[Event, ...] = ()
    decisions: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        return len(self.seats)

    @cached_property
    def by_slot(self) -> Mapping[Slot, Seat]:
        return {seat.slot: seat for seat in self.seats}

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that have ranks, in the order of their lowest rank (torchrun's group rank)."""
        return tuple(dict.fromkeys(seat.slot.node for seat in self.seats))
