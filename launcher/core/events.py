"""What can happen to a job. Every event is one sentence when read with ``str()``."""

from __future__ import annotations

from dataclasses import dataclass

from tlaunch.topology.model import Slot


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``code`` and ``signal`` both ``None``: it is gone, and nobody could tell how.

    ``message`` is the last line of its first traceback, ``traceback`` all of it (from the torchelastic error file, if
    it wrote one). ``time`` is the wall time in seconds at which it was noticed; it serves only to find which of several
    failures came first.
    """

    code: int | None = None
    signal: int | None = None
    message: str | None = None
    traceback: str | None = None
    time: float = 0.0

    @property
    def ok(self) -> bool:
        return self.code == 0


@dataclass(frozen=True, slots=True)
class RankFailed:
    """The process of a rank ended otherwise than with 0, on a slot that is not known to be bad."""

    rank: int
    slot: Slot
    exit: Exit


@dataclass(frozen=True, slots=True)
class SlotFailed:
    """A slot was reported bad, or an operator drains it. ``rank``: who sat on it, if anybody."""

    slot: Slot
    reason: str
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node's agent is gone (its lease ran out, or its host says so), with whatever ran there."""

    node: str
    reason: str
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AckOverdue:
    """An agent has not applied the current plan in time."""

    node: str
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AllFinished:
    """Every rank ended with 0."""


@dataclass(frozen=True, slots=True)
class NodesReady:
    """All the nodes that the job asked for have registered."""


@dataclass(frozen=True, slots=True)
class StartOverdue:
    """Not all nodes have registered in time."""

    registered: int


@dataclass(frozen=True, slots=True)
class StopRequested:
    """An operator or a signal ends the job."""

    reason: str
    code: int


Event = RankFailed | SlotFailed | NodeLost | AckOverdue | AllFinished | NodesReady | StartOverdue | StopRequested
