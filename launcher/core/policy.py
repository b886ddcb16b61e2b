"""What to do about a failure: the default ladder, and the class that users derive their own from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tlaunch.launcher.core.blame import TRIES, tally
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.decisions import Decision, Grow, Restart, Shrink, Stop, Swap
from tlaunch.launcher.core.events import Exit, one_line
from tlaunch.topology.explain import count
from tlaunch.topology.model import Slot
from tlaunch.topology.regroup import GroupMove


@dataclass(frozen=True, slots=True)
class Failure:
    """A rank that cannot go on as it is. One sentence when read with ``str()``.

    ``kind``: its process ended on a healthy slot (``crash``, with ``exit``), its slot is bad (``slot``), or its node is
    lost or does not respond (``node``). ``spare``: the spare that suits it best when all ranks that need one are looked
    at together (those of one node stay on one node where possible); ``None`` when the swap scope has none for it.
    ``tries``: how many tries in a row, this one included, have ended with the same exception at the same place.
    ``group_move``: an offer to move its whole innermost group to another NVLink domain, when a swap would leave the
    group in several domains or cannot be had; the ladder never takes it, as it moves ranks that are healthy.
    """

    kind: Literal["crash", "slot", "node"]
    rank: int
    slot: Slot
    reason: str
    exit: Exit | None = None
    spare: Slot | None = None
    tries: int = 1
    group_move: GroupMove | None = None

    @property
    def counted(self) -> bool:
        """Whether ``--max-restarts`` counts it: a crash, unless an operator had the process killed to try that out."""
        return self.kind == "crash" and not (self.exit is not None and self.exit.trial)

    def __str__(self) -> str:
        what = {"crash": "failed", "slot": "lost its slot", "node": "lost its node"}[self.kind]
        return f"rank {self.rank} on {self.slot} {what}: {one_line(self.reason)}"


@dataclass(frozen=True, slots=True)
class Room:
    """A job that has shrunk, and free slots for some of the replicas that it has lost.

    ``replicas``: how many. ``restarting``: whether every rank starts again now in any case, so that growing costs
    nothing besides; otherwise it ends the ranks of an unmodified script where they are.
    """

    replicas: int
    restarting: bool


class Policy:
    """The default ladder: restart in place, swap to the nearest spare in scope, shrink by whole replicas, stop.

    Derive from it and override :meth:`on_failure`. A decision that breaks an invariant, or an exception, is noted in
    the plan, and this ladder takes over for that failure. A policy is asked by whoever is the controller, which may
    change at any time: what it must remember stands in the cluster's plan and history, not in the object. The job
    stands still meanwhile, so it has 2 seconds for all that has happened at once; then the ladder decides instead.
    """

    def on_failure(self, failure: Failure, cluster: Cluster) -> Decision:
        """Decide about one failure.

        ``cluster`` includes what was decided about the failures before this one: spares that are taken are no spares
        any more. When ranks fail on healthy slots, this is asked once, about the first: the others are consequences.
        """
        if failure.kind == "crash":
            return self.on_crash(failure, cluster)
        if failure.spare is not None:
            return Swap(failure.rank, to=failure.spare)
        # Ends the job when too few ranks would be left.
        return Shrink()

    def on_room(self, room: Room, cluster: Cluster) -> Grow | None:
        """Decide whether the job takes back replicas that it has lost; ``None`` to leave it as it is.

        Asked after each failure that has been dealt with, and at every look while there is room. Growing at once is
        worth a restart of all ranks when what is left of the job is long; this ladder cannot know, and waits for a
        failure to restart them.
        """
        return Grow(room.replicas) if room.restarting else None

    def on_crash(self, failure: Failure, cluster: Cluster) -> Decision:
        """Decide about a process that ended on a healthy slot: restart it as often as the job allows.

        Not when every try fails with the same exception at the same place: that is the script's, and stays.
        """
        code = 1 if failure.exit is None else failure.exit.status
        if failure.tries >= TRIES:
            where = "" if failure.exit is None or failure.exit.bug is None else f": {failure.exit.bug}"
            return Stop(
                f"{failure}; {failure.tries} tries in a row ended alike, so the fault is the script's{where}", code
            )
        limit, faults = cluster.spec.max_restarts, () if cluster.plan is None else cluster.plan.faults
        if cluster.plan is not None and (cluster.plan.restarts < limit or not failure.counted):
            return Restart(failure.rank)
        counted = 1 if cluster.plan is None else cluster.plan.restarts + 1
        return Stop(
            f"{failure}; --max-restarts {limit} reached: {count(counted, 'failure')} of the job's own code counted "
            f"({tally(faults, counted)}), replaced hardware not; to forgive more, raise --max-restarts",
            code,
        )
