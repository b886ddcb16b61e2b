"""Which rank goes on which slot, and which slots stay spare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tlaunch.topology.model import Slot


@dataclass(frozen=True, slots=True)
class Placement:
    """``seats[rank]`` is the slot of that rank; ``spares`` are the healthy slots without a rank, in machine order."""

    seats: Mapping[int, Slot]
    spares: tuple[Slot, ...]
    reasons: tuple[str, ...]
