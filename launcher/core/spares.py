"""The healthy slots without a rank, as a policy sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from tlaunch.topology.model import Machine, Scope, Slot
from tlaunch.topology.replacement import nearest


@dataclass(frozen=True)
class Spares:
    """The spares in the order of the machine. Like a tuple: false when empty, with ``len``, ``in`` and ``for``."""

    machine: Machine
    slots: tuple[Slot, ...]

    def nearest(self, slot: Slot, within: Scope = "rack") -> Slot | None:
        """Return the spare that is nearest to ``slot`` and not outside the scope around it, if there is one."""
        return nearest(self.machine, slot, self.slots, within)

    def in_rack(self, name: str) -> tuple[Slot, ...]:
        """Return the spares of one rack."""
        return tuple(slot for slot in self.slots if self.machine.node_of(slot).rack == name)

    @cached_property
    def by_rack(self) -> Mapping[str | None, int]:
        """How many spares each rack has that has any; ``None`` for nodes that are in no rack."""
        return Counter(self.machine.node_of(slot).rack for slot in self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __getitem__(self, index: int) -> Slot:
        return self.slots[index]

    def __contains__(self, slot: object) -> bool:
        return slot in self.slots
