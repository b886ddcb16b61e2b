"""An immutable snapshot of the job and the machine, on which every decision is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.plan import Plan
from tlaunch.launcher.core.spares import Spares
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.growing import room_for
from tlaunch.topology.model import Machine, Slot


@dataclass(frozen=True)
class Cluster:
    """What the controller knows at one moment.

    ``machine``: every registered node, and every lost one that the plan still names. ``alive``: the names of the nodes
    whose agent is registered (or must still be assumed to be). ``bad``: slots reported bad or drained, with the reason;
    ``drained``: those of them that work and that an operator wants empty. ``exits``: for the ranks of the *current*
    generation whose process has ended, how; and for one that hangs and holds all others up. ``acked``: nodes that have
    applied the current plan. ``history``: earlier plans, oldest first, as far as the controller knows them.

    ``clocks``: for each node that was asked, what to add to the times of its exits to have them on the controller's
    clock. ``now`` and ``planned_at`` are seconds on the controller's monotonic clock; ``started_at`` is when the job
    began to wait for nodes, ``waiting_since`` when a policy first said to wait with the failures of the current plan.
    """

    spec: JobSpec
    machine: Machine
    alive: frozenset[str]
    plan: Plan | None = None
    bad: Mapping[Slot, str] = field(default_factory=dict)
    drained: frozenset[Slot] = frozenset()
    exits: Mapping[int, Exit] = field(default_factory=dict)
    clocks: Mapping[str, float] = field(default_factory=dict)
    acked: frozenset[str] = frozenset()
    stop: tuple[str, int] | None = None
    now: float = 0.0
    planned_at: float = 0.0
    started_at: float = 0.0
    waiting_since: float | None = None
    history: Sequence[Plan] = ()

    @cached_property
    def usable(self) -> frozenset[Slot]:
        """The slots on which a rank may run: healthy, on a live node, with or without a rank."""
        out = self.bad.keys() | (dict(self.plan.bad) if self.plan else {}).keys()
        return frozenset(slot for slot in self.machine.slots if slot.node in self.alive and slot not in out)

    @cached_property
    def spares(self) -> Spares:
        """The usable slots without a rank."""
        seated = self.plan.by_slot if self.plan else {}
        return Spares(
            self.machine, tuple(slot for slot in self.machine.slots if slot in self.usable and slot not in seated)
        )

    @cached_property
    def room(self) -> int:
        """How many of the replicas that the job has lost there are free slots for; none once a rank has finished."""
        if self.plan is None or any(ended.ok for ended in self.exits.values()):
            return 0
        wanted = self.spec.mesh.replicas
        if self.plan.mesh.replicas >= wanted:  # before the slots are looked at: that takes a while on large machines
            return 0
        return room_for(self.plan.mesh, len(self.spares), replicas=wanted)

    @cached_property
    def displaced(self) -> tuple[int, ...]:
        """The ranks whose slot is not usable, those on drained ones aside: they are welcome to stay."""
        seats = self.plan.seats if self.plan else ()
        dead = dict(self.plan.bad) if self.plan else {}
        stay = {
            slot for slot in self.drained - dead.keys() if slot.node in self.alive and slot in self.machine.position
        }
        return tuple(seat.rank for seat in seats if seat.slot not in self.usable and seat.slot not in stay)

    def why_unusable(self, slot: Slot) -> str:
        """Say what is wrong with a slot."""
        if slot.node not in self.alive:
            return "its node is lost" if slot.node in self.machine.by_name else "there is no such node"
        if slot not in self.machine.position:
            return "its node has no such slot"
        reasons = {**dict(self.plan.bad if self.plan else ()), **self.bad}
        return reasons.get(slot, "it is usable")
