"""What stands in the store, apart from the core's own types: all JSON, by :mod:`tlaunch.launcher.core.codec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tlaunch.launcher.core.assign import AssignedSeat, Assignment, Generation
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.hang import Hung
from tlaunch.topology.model import Node

__all__ = [
    "Ack",
    "AssignedSeat",
    "Assignment",
    "Drain",
    "FailSlot",
    "Generation",
    "KillNode",
    "KillRank",
    "Leader",
    "NodeCommand",
    "Registration",
    "Rendezvous",
    "Report",
    "Stop",
]


@dataclass(frozen=True, slots=True)
class Registration:
    """A node that takes part.

    ``incarnation`` tells one start of its agent from the next; ``address`` is the ``host:port`` of its probe.
    """

    node: Node
    host: str
    pid: int
    incarnation: str
    address: str


@dataclass(frozen=True, slots=True)
class Launcher:
    """Who started the job. While this stands, the job's id is taken."""

    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Leader:
    """Who is the controller."""

    node: str
    incarnation: str


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
    """What an agent has to say of its slots: ranks of ``generation`` that ended, by rank; bad slots, by index.

    ``hung``: every rank that runs, by rank, as long as none of them gets any further.
    """

    generation: int
    exits: Mapping[int, Exit] = field(default_factory=dict)
    bad: Mapping[int, str] = field(default_factory=dict)
    hung: Mapping[int, Hung] = field(default_factory=dict)


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
    """Operator, to try a failure out: report the slot as bad, as the health probe would, and SIGKILL its process."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class KillNode:
    """Operator, to try a failure out: SIGKILL to everything on the node, the agent included."""


NodeCommand = KillRank | FailSlot | KillNode
