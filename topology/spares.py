"""How many slots are kept spare, and where: ``8`` in all, ``8/rack`` in each rack, ``2n`` whole nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tlaunch.topology.model import LEVELS, Level, Machine, TopologyError

_WRITTEN = re.compile(r"(?P<count>[0-9]{1,9})(?P<node>n?)(?:/(?P<level>[a-z]+))?")
_EXPECTED = "a number of GPUs such as 8, or 8/rack for so many in each rack, or 2n for whole nodes"


@dataclass(frozen=True, slots=True)
class SpareRequest:
    """``count`` slots or whole nodes, in all or in each region of a level."""

    count: int
    unit: Literal["slot", "node"] = "slot"
    per: Level | None = None

    @classmethod
    def parse(cls, text: str) -> SpareRequest:
        """Read ``8``, ``8/rack``, ``2n`` or ``1n/rack``; raises ``TopologyError``."""
        try:
            return cls.read(text)
        except ValueError as error:
            raise TopologyError(f"spares {text[:60]!r}: expected {error}") from None

    @classmethod
    def read(cls, text: str) -> SpareRequest:
        """Do as ``parse``, but raise ``ValueError`` with nothing but what was expected."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise ValueError(_EXPECTED)
        level: Level | None = None
        if match["level"] is not None:
            level = next((name for name in LEVELS if name == match["level"]), None)
            if level is None or (level == "node" and match["node"]):
                raise ValueError(f"one of {', '.join(LEVELS[bool(match['node']) :])} after the slash")
        return cls(int(match["count"]), "node" if match["node"] else "slot", level)

    def __str__(self) -> str:
        return f"{self.count}{'n' if self.unit == 'node' else ''}{f'/{self.per}' if self.per else ''}"

    def total(self, machine: Machine) -> int:
        """Return how many slots that is on a machine of which all slots are healthy.

        A region with fewer slots or nodes than it should keep counts with those that it has; of nodes of several sizes
        the largest count.
        """
        if self.unit == "slot" and self.per is None:
            return self.count
        nodes: dict[int, list[int]] = {}
        for index, node in enumerate(machine):
            nodes.setdefault(machine.regions[self.per][index] if self.per else 0, []).append(node.slots)
        if self.unit == "slot":
            return sum(min(self.count, sum(sizes)) for sizes in nodes.values())
        return sum(sum(sorted(sizes)[-self.count :]) for sizes in nodes.values()) if self.count else 0
