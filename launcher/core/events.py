"""What can happen to a job. Every event is one sentence when read with ``str()``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from signal import Signals
from typing import Literal

from tlaunch.launcher.core.symptoms import ACCELERATOR, BROKEN, LOST_PEER, alike, place, says
from tlaunch.topology.explain import count
from tlaunch.topology.explain import ranks as rank_list
from tlaunch.topology.model import Slot


def one_line(text: str, limit: int = 200) -> str:
    """Return foreign text as one line of at most ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def named(ranks: Collection[int]) -> str:
    """Write ``rank 5`` or ``ranks 0-3,8``."""
    return f"rank{'' if len(ranks) == 1 else 's'} {rank_list(ranks)}"


_IN_WORDS = {
    "SIGABRT": "aborted",
    "SIGBUS": "bus error",
    "SIGFPE": "arithmetic error",
    "SIGILL": "illegal instruction",
    "SIGSEGV": "segmentation fault",
}


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``code`` and ``signal`` both ``None``: it is gone, and nobody could tell how.

    ``message`` is the last line of its first traceback, ``traceback`` all of it (from the torchelastic error file, if
    it wrote one). ``output``: the last lines that it printed. ``host``: the name of the machine. ``time``: when it
    failed, in seconds on the monotonic clock of that machine, which nobody sets; it serves only to find which of
    several failures came first. ``ran``: for how many seconds it had run then. ``trial``: an operator had it killed.

    ``hang``: it has not ended, but does not get any further; ``traceback`` is its stack. It is the ``cause`` of the
    others' hanging, or stands for all where it is ``unclear`` which one that is.
    """

    code: int | None = None
    signal: int | None = None
    message: str | None = None
    traceback: str | None = None
    output: str | None = None
    host: str = ""
    time: float = 0.0
    ran: float = 0.0
    trial: bool = False
    hang: Literal["cause", "unclear"] | None = None

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def lost_peer(self) -> bool:
        """Whether it says that another process has gone: then it is a victim, whichever of the two ended first.

        One that has left no traceback, for example because a library aborted it, may have said so in its last lines.
        """
        return self.hang is None and not self.broken and says(LOST_PEER, *self._said)

    @property
    def broken(self) -> bool:
        """Whether it says that the GPU is broken."""
        return self.hang is None and says(BROKEN, *self._said)

    @property
    def bug(self) -> str | None:
        """What went wrong where in the script, in words that are the same on every try.

        ``None`` when it did not end with an exception, or when the exception may be another process's fault or the
        hardware's.
        """
        if self.hang is not None:
            return None
        where = None if self.traceback is None else place(self.traceback)
        if self.message is None or where is None or self.lost_peer or says(BROKEN + ACCELERATOR, *self._said):
            return None
        return f"{one_line(alike(self.message), 120)} ({one_line(where, 80)})"

    @property
    def way(self) -> str:
        """How it failed, in words that are the same on every try."""
        return self.bug or one_line(alike(self.message) if self.message else self.how, 200)

    @property
    def _said(self) -> tuple[str | None, ...]:
        return (self.message, self.output if self.traceback is None else self.traceback)

    @property
    def status(self) -> int:
        """What a shell would call its exit code: the code, or 128 and the signal; 1 when nobody could tell."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.code is None else self.code

    @property
    def how(self) -> str:
        """The exit code, the signal, or that it hangs."""
        if self.signal is not None:
            return f"killed by {_signal_name(self.signal)}"
        if self.hang is not None:
            return "hang"
        return "its process is gone" if self.code is None else f"exit code {self.code}"

    def __str__(self) -> str:
        return f"{self.how}: {one_line(self.message)}" if self.message else self.how


def _signal_name(number: int) -> str:
    try:
        name = Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} ({_IN_WORDS[name]})" if name in _IN_WORDS else name


@dataclass(frozen=True, slots=True)
class RankFailed:
    """The process of a rank ended otherwise than with 0, on a slot that is not known to be bad."""

    rank: int
    slot: Slot
    exit: Exit

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.slot} failed: {self.exit}"


@dataclass(frozen=True, slots=True)
class SlotFailed:
    """A slot was reported bad. ``rank``: whose unfinished process is on it, if anybody's."""

    slot: Slot
    reason: str
    rank: int | None = None

    def __str__(self) -> str:
        who = "a spare" if self.rank is None else f"rank {self.rank}"
        return f"{self.slot} ({who}) is bad: {one_line(self.reason)}"


@dataclass(frozen=True, slots=True)
class SlotDrained:
    """An operator wants the rank to leave a slot that works."""

    slot: Slot
    reason: str
    rank: int

    def __str__(self) -> str:
        return f"{self.slot} (rank {self.rank}) is to be drained: {one_line(self.reason)}"


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node's agent is gone (its lease ran out, or its host says so), with the unfinished ranks that ran there."""

    node: str
    reason: str
    ranks: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.node} ({named(self.ranks)}) is lost: {one_line(self.reason)}"


@dataclass(frozen=True, slots=True)
class AckOverdue:
    """An agent has not applied the current plan in time; with the unfinished ranks that it should run."""

    node: str
    ranks: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.node} ({named(self.ranks)}) has not applied the plan in time"


@dataclass(frozen=True, slots=True)
class RoomToGrow:
    """A job that has shrunk could have this many replicas back: there are free slots for them."""

    replicas: int

    def __str__(self) -> str:
        return f"there is room for {count(self.replicas, 'replica')} that the job has lost"


@dataclass(frozen=True, slots=True)
class AllFinished:
    """Every rank ended with 0."""

    def __str__(self) -> str:
        return "every rank ended with exit code 0"


@dataclass(frozen=True, slots=True)
class NodesReady:
    """All the nodes that the job asked for have registered."""

    def __str__(self) -> str:
        return "all nodes have registered"


@dataclass(frozen=True, slots=True)
class StartOverdue:
    """The job could not start in time. ``registered``: how many nodes there are."""

    registered: int

    def __str__(self) -> str:
        return f"the job could not start in time with {self.registered} nodes registered"


@dataclass(frozen=True, slots=True)
class StopRequested:
    """An operator or a signal ends the job."""

    reason: str
    code: int

    def __str__(self) -> str:
        return f"the job is to stop: {one_line(self.reason)}"


Event = (
    RankFailed
    | SlotFailed
    | SlotDrained
    | NodeLost
    | AckOverdue
    | RoomToGrow
    | AllFinished
    | NodesReady
    | StartOverdue
    | StopRequested
)


def hardware_failed(events: Iterable[Event]) -> bool:
    """Tell whether ranks have lost the hardware under them. Then processes elsewhere fail too: their peers are gone."""
    return any(
        bool(event.ranks) if isinstance(event, NodeLost | AckOverdue) else event.rank is not None
        for event in events
        if isinstance(event, NodeLost | AckOverdue | SlotFailed)
    )
