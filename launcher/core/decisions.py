"""What a policy may say to do about a failure. Every decision is one sentence when read with ``str()``."""

from __future__ import annotations

from dataclasses import dataclass

from tlaunch.topology.model import Slot


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the rank again where it is. Only for a crash: a broken slot cannot be started again."""

    rank: int

    def __str__(self) -> str:
        return f"restart rank {self.rank} in place"


@dataclass(frozen=True, slots=True)
class Swap:
    """Move the rank to a spare inside the job's swap scope, under the same number."""

    rank: int
    to: Slot

    def __str__(self) -> str:
        return f"swap rank {self.rank} to {self.to}"


@dataclass(frozen=True, slots=True)
class MoveGroup:
    """Move the rank and all other ranks of its innermost group, as ``failure.group_move`` offers it.

    That restores the locality of the group where a swap cannot, at the cost of moving ranks that are healthy.
    """

    rank: int

    def __str__(self) -> str:
        return f"move the whole group of rank {self.rank}"


@dataclass(frozen=True, slots=True)
class Shrink:
    """Give up the rank's data-parallel replica, and others until ``replicas`` are dropped in all.

    Healthy slots of a dropped replica complete other damaged ones, so that several failures may cost one replica.
    """

    replicas: int = 1

    def __str__(self) -> str:
        return f"shrink by {self.replicas} replica{'s' if self.replicas != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Grow:
    """Take back so many of the replicas that the job has lost. An answer to ``Room``, not to a failure."""

    replicas: int = 1

    def __str__(self) -> str:
        return f"grow by {self.replicas} replica{'s' if self.replicas != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until so many seconds after this was first said. Then the policy must say something else.

    Meant for hardware that may come back; at most the job's ``start_timeout``, as for nodes in the beginning.
    """

    seconds: float
    reason: str

    def __str__(self) -> str:
        return f"wait {self.seconds} s: {self.reason}"


@dataclass(frozen=True, slots=True)
class Stop:
    """End the job with an exit code from 0 to 255."""

    reason: str
    code: int = 1

    def __str__(self) -> str:
        return f"stop: {self.reason}"


Decision = Restart | Swap | MoveGroup | Shrink | Wait | Stop
