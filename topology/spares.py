"""How many slots are kept spare, and where: ``8`` in all, ``8/rack`` in each rack, ``2n`` whole nodes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tlaunch.topology.model import LEVELS, Level, Machine, TopologyError

_WRITTEN = re.compile(r"(?P<count>[0-9]{1,9})(?P<node>n?)(?:/(?P<level>[a-z]+))?")
_EXPECTED = "a number of GPUs such as 8, or 8/rack for each rack, or 2n for whole nodes"


@dataclass(frozen=True, slots=True)
class SpareRequest:
    """``count`` slots or whole nodes, in all or in each region of a level."""

    count: int
    unit: Literal["slot", "node"] = "slot"
    per: Level | None = None

    @classmethod
    def parse(cls, text: str) -> SpareRequest:
        """Read ``8``, ``8/rack``, ``2n`` or ``1n/rack``; raises ``TopologyError``."""
        match = _WRITTEN.fullmatch(text.strip())
        if match is None:
            raise TopologyError(f"spares {text[:60]!r}: expected {_EXPECTED}")
        level = match["level"]
        levels: dict[str, Level] = {name: name for name in LEVELS}
        if level is not None and level not in levels:
            raise TopologyError(
                f"spares {text!r}: {level!r} is no level of the machine; expected one of {', '.join(LEVELS)}"
            )
        if match["node"] and level == "node":
            raise TopologyError(f"spares {text!r}: no node is left when whole nodes of each are spare; expected fewer")
        return cls(int(match["count"]), "node" if match["node"] else "slot", None if level is None else levels[level])

    def __str__(self) -> str:
        return f"{self.count}{'n' if self.unit == 'node' else ''}{f'/{self.per}' if self.per else ''}"

    def total(self, machine: Machine) -> int:
        """Return how many slots that is on a machine of which all slots are healthy.

        A region with fewer slots than it should keep counts with those that it has.
        """
        if self.unit == "node":
            sizes = Counter(machine.regions[self.per]) if self.per else Counter({0: len(machine.nodes)})
            kept = sum(min(self.count, size) for size in sizes.values())
            return kept * max(node.slots for node in machine)
        if self.per is None:
            return self.count
        sizes = Counter[int]()
        for region, node in zip(machine.regions[self.per], machine, strict=True):
            sizes[region] += node.slots
        return sum(min(self.count, size) for size in sizes.values())
