"""What stands in the store, apart from the core's own types. All of it is JSON through :mod:`tlaunch.launcher.core.codec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.plan import Result
from tlaunch.topology.model import Node


@dataclass(frozen=True, slots=True)
class Registration:
    """A node that takes part. ``incarnation`` tells one start of its agent from the next; ``address`` is ``host:port`` of its probe."""

    node: Node
    host: str
    pid: int
    incarnation: str
    address: str


@dataclass(frozen=True, slots=True)
class Leader:
    """Who is the controller."""

    node: str
    incarnation: str


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


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the process group of one generation meets: ``MASTER_ADDR`` and ``MASTER_PORT``."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Ack:
    """The node runs what this generation asks of it."""

    generation: int


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent has to say of its slots: ranks of ``generation`` that ended, by rank, and slots that are bad, by index."""

    generation: int
    exits: Mapping[int, Exit] = field(default_factory=dict)
    bad: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drain:
    """Operator: move ranks off ``target``, a node or a slot, and leave it empty."""

    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Operator: end the job with this exit code."""

    reason: str
    code: int


@dataclass(frozen=True, slots=True)
class KillRank:
    """Operator, to try a failure out: SIGKILL to the process of a rank."""

    rank: int


@dataclass(frozen=True, slots=True)
class FailSlot:
    """Operator, to try a failure out: report the slot as bad, as the health probe would, and SIGKILL what runs there."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class KillNode:
    """Operator, to try a failure out: SIGKILL to everything on the node, the agent included."""


NodeCommand = KillRank | FailSlot | KillNode
