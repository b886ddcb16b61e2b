"""One plan from the one before: what is written down of events and decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.events import Event, Exit, RankFailed, hardware_failed, one_line
from tlaunch.launcher.core.plan import Fault, Plan, Result, Seat
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Slot

KEPT_CRASHES = 16
"""How many crashes a plan records one by one. When one rank fails, thousands may fail with it."""

KEPT_SENTENCES = 200
"""How many decisions, and how many reasons, a plan tells. Which rank is where stands in its seats."""

KEPT_TRACEBACK = 16_384
"""How many characters of a traceback are kept: its end, where the error is."""

KEPT_OUTPUT = 2_000
"""How many characters are kept of what the first to fail printed last."""


def following(
    plan: Plan | None,
    mesh: Mesh,
    seats: Mapping[int, Slot],
    *,
    bad: Mapping[Slot, str],
    restarts: int,
    faults: tuple[Fault, ...] = (),
    events: Sequence[Event],
    decisions: Iterable[str],
    reasons: Iterable[str],
) -> Plan:
    """Return the next generation, in which the ranks are on ``seats``. ``bad`` is all that is not used any more."""
    generation = 1 if plan is None else plan.generation + 1
    before = {} if plan is None else {seat.rank: seat for seat in plan.seats}
    return Plan(
        generation=generation,
        mesh=mesh,
        seats=tuple(Seat(rank, slot, since(before.get(rank), generation)) for rank, slot in sorted(seats.items())),
        bad=tuple((slot, one_line(reason)) for slot, reason in sorted(bad.items())),
        restarts=restarts,
        faults=faults,
        events=kept(events),
        decisions=_first(decisions),
        reasons=_first(reasons),
    )


def since(_before: Seat | None, generation: int) -> int:
    """Return in which generation the process of a rank starts that is on its seat from ``generation`` on.

    A script that knows nothing of tlaunch has a process group that dies with any of its members, so that every rank
    needs a new process in every generation. The survivors of an elastic script will keep theirs: ``_before.since``.
    """
    return generation


def ending(cluster: Cluster, events: Sequence[Event], result: Result, reasons: Iterable[str] = ()) -> Plan:
    """Return the plan that ends the job."""
    plan = cluster.plan
    traceback = None if result.traceback is None else result.traceback[-KEPT_TRACEBACK:]
    return Plan(
        generation=1 if plan is None else plan.generation + 1,
        mesh=cluster.spec.mesh if plan is None else plan.mesh,
        seats=(),
        bad=() if plan is None else plan.bad,
        restarts=0 if plan is None else plan.restarts,
        faults=() if plan is None else plan.faults,
        result=replace(result, reason=one_line(result.reason, 1000), traceback=traceback),
        events=kept(events),
        decisions=(f"end with exit code {result.code}: {one_line(result.reason, 1000)}",),
        reasons=_first(reasons),
    )


def unwritable(plan: Plan, why: str) -> Plan:
    """Return what ends the job in place of a plan that cannot be written, for example because it is too large."""
    result = plan.result or Result(1, one_line(f"generation {plan.generation} cannot be written: {why}", 1000))
    said = f"end with exit code {result.code}: {result.reason}"
    return Plan(plan.generation, plan.mesh, seats=(), restarts=plan.restarts, result=result, decisions=(said,))


def kept(events: Sequence[Event]) -> tuple[Event, ...]:
    """Return what a plan records of its events: documents are limited in size, and so are the first causes.

    What victims said on their way out is left out: the reasons name their ranks.
    """
    crashes = [] if hardware_failed(events) else [event for event in events if isinstance(event, RankFailed)]
    crashes = [event for event in crashes if event is crashes[0] or not event.exit.lost_peer]
    recorded = {event.rank: _trimmed(event, first=event is crashes[0]) for event in crashes[:KEPT_CRASHES]}
    return tuple(
        recorded[event.rank] if isinstance(event, RankFailed) else event
        for event in events
        if not isinstance(event, RankFailed) or event.rank in recorded
    )


def _first(sentences: Iterable[str]) -> tuple[str, ...]:
    told = tuple(sentences)
    more = len(told) - KEPT_SENTENCES
    return told if more <= 0 else (*told[:KEPT_SENTENCES], f"and {more} more")


def _trimmed(event: RankFailed, *, first: bool) -> RankFailed:
    ended: Exit = event.exit
    message = None if ended.message is None else one_line(ended.message)
    traceback = ended.traceback[-KEPT_TRACEBACK:] if first and ended.traceback is not None else None
    output = ended.output[-KEPT_OUTPUT:] if first and ended.output is not None else None
    return replace(event, exit=replace(ended, message=message, traceback=traceback, output=output))
