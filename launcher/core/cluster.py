"""An immutable snapshot of the job and the machine, on which every decision is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.plan import Plan
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.model import Machine, Slot


@dataclass(frozen=True)
class Cluster:
    """What the controller knows at one moment.

    ``machine``: every registered node, and every lost one that the plan still names. ``alive``: the names of the nodes
    whose agent is registered (or must still be assumed to be). ``bad``: slots reported bad or drained, with the reason.
    ``exits``: for the ranks of the *current* generation whose process has ended, how. ``acked``: nodes that have
    applied the current plan. ``now`` and ``planned_at`` are seconds on the controller's monotonic clock; ``started_at``
    is when the job began to wait for nodes.
    """

    spec: JobSpec
    machine: Machine
    alive: frozenset[str]
    plan: Plan | None = None
    bad: Mapping[Slot, str] = field(default_factory=dict)
    exits: Mapping[int, Exit] = field(default_factory=dict)
    acked: frozenset[str] = frozenset()
    stop: tuple[str, int] | None = None
    now: float = 0.0
    planned_at: float = 0.0
    started_at: float = 0.0
