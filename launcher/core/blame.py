"""Whose fault a crash is: the script's or the slot's. From the faults that plans keep, so that every controller agrees.

A crash counts as the script's at first. A slot on which ranks crash again and again is taken for bad hardware: its rank
moves to a spare, and what was counted because of the slot is forgiven. Should the rank fail on its new slot too, the
failure has followed it: then it was the script's all along, everything is counted after all, and nobody moves again.

What an operator had killed to try a failure out is nobody's fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.events import Event, RankFailed, hardware_failed
from tlaunch.launcher.core.plan import Fault
from tlaunch.topology.model import Slot

TRIES = 3
"""So many failures are a pattern: of the same exception in a row, it is the script's; on one slot, it is the slot's."""

QUICK = 600.0
"""A try that ran for so many seconds got somewhere, as far as we know: it is not the same try over again."""

KEPT_FAULTS = 16
"""How many faults a plan keeps."""


@dataclass(frozen=True, slots=True)
class Blame:
    """``faults``: what the next plan keeps, this one last. ``restarts``: the failures counted before this one.

    ``bad``: why its slot is used no more; ``None`` when the script is to blame. ``tries``: how many in a row have
    failed in this very way. ``reason``: a sentence for the plan, if there is something to say.
    """

    faults: tuple[Fault, ...]
    restarts: int
    bad: str | None
    tries: int
    reason: str | None


def judge(cluster: Cluster, crash: RankFailed) -> Blame:
    """Say whose fault a crash is."""
    plan = cluster.plan
    assert plan is not None
    if crash.exit.trial or crash.exit.hang == "unclear":
        return Blame(plan.faults, plan.restarts, bad=None, tries=1, reason=None)
    fault = Fault(crash.rank, crash.slot, crash.exit.way, crash.exit.ran)
    tries = _in_a_row(plan.faults, fault) if crash.exit.bug else 1
    origin = {earlier.slot for earlier in plan.faults if _follows(earlier, fault, crash)}
    # The same exception twice on a suspect slot: the next try will tell.
    bad = None if origin or tries > 1 else _why_bad(cluster, plan.faults, fault, crash)
    faults = tuple(_again(each, {crash.slot} if bad else set(), origin) for each in plan.faults)
    restarts = plan.restarts + _counted(faults) - _counted(plan.faults)
    return Blame(
        faults=(*faults, replace(fault, blamed="slot" if bad else "script"))[-KEPT_FAULTS:],
        restarts=restarts,
        bad=bad,
        tries=tries,
        reason=_told(fault, origin, bad, abs(restarts - plan.restarts)),
    )


def weighty(cluster: Cluster, events: Sequence[Event]) -> bool:
    """Tell whether more than a restart in place may come of these crashes, so that the first one should be certain."""
    crashes = [event for event in events if isinstance(event, RankFailed)]
    if cluster.plan is None or not crashes or crashes[0].exit.trial or hardware_failed(events):
        return False
    blame = judge(cluster, crashes[0])
    return blame.bad is not None or blame.tries >= TRIES or blame.restarts >= cluster.spec.max_restarts


def tally(faults: Sequence[Fault], total: int) -> str:
    """Say whose failures are counted, of so many: ``rank 3: 2, rank 5: 1``; others are long past or of ranks gone."""
    numbers = Counter(fault.rank for fault in faults if fault.counted)
    others = [f"others: {total - numbers.total()}"] if total > numbers.total() else []
    return ", ".join([*(f"rank {rank}: {number}" for rank, number in sorted(numbers.items())), *others])


def _in_a_row(faults: Sequence[Fault], last: Fault) -> int:
    """Count the tries up to this one that failed alike, each but the first of them quickly."""
    number = 1
    for fault in reversed(faults):
        if last.ran >= QUICK or fault.way != last.way:
            break
        number, last = number + 1, fault
    return number


def _follows(earlier: Fault, fault: Fault, crash: RankFailed) -> bool:
    """Whether a failure that a slot was blamed for has come again on another slot.

    Two broken GPUs are no wonder in a long job: one that says so is believed unless it says so at once.
    """
    if earlier.blamed == "script" or earlier.slot == fault.slot:
        return False
    if earlier.rank == fault.rank:
        return not crash.exit.broken or fault.ran < QUICK
    return earlier.way == fault.way and crash.exit.traceback is not None and not crash.exit.broken


def _why_bad(cluster: Cluster, faults: Sequence[Fault], fault: Fault, crash: RankFailed) -> str | None:
    """Return why a slot is taken for bad, if it is. Without its own word for it there must be a spare to tell by."""
    if crash.exit.broken:
        return f"rank {fault.rank} said there: {crash.exit}"
    here = [*(each for each in faults if each.slot == fault.slot and each.counted), fault]
    ranks = sorted({each.rank for each in here})
    if cluster.spares.nearest(fault.slot, cluster.spec.swap_scope) is None:
        return None
    if len(ranks) > 1:
        return f"ranks {', '.join(map(str, ranks))} failed there one after the other, last {crash.exit.how}"
    return f"rank {fault.rank} failed there {len(here)} times, last {crash.exit.how}" if len(here) >= TRIES else None


def _again(fault: Fault, bad: set[Slot], origin: set[Slot]) -> Fault:
    """Blame somebody else for an earlier fault, if what is known by now says so."""
    if fault.slot in bad:
        return replace(fault, blamed="slot")
    return replace(fault, blamed="script after all") if fault.slot in origin and not fault.counted else fault


def _counted(faults: Sequence[Fault]) -> int:
    return sum(fault.counted for fault in faults)


def _told(fault: Fault, origin: set[Slot], bad: str | None, turned: int) -> str | None:
    if bad:
        forgiven = f"; {_failures(turned)} there is not counted any more" if turned == 1 else ""
        forgiven = f"; {_failures(turned)} there are not counted any more" if turned > 1 else forgiven
        return f"{fault.slot} is taken for bad hardware: {bad}{forgiven}"
    if origin:
        slots = ", ".join(map(str, sorted(origin)))
        return (
            f"the failure has followed rank {fault.rank} from {slots} to {fault.slot}: it is the script's, and counts"
        )
    return None


def _failures(number: int) -> str:
    return f"{number} earlier failure{'' if number == 1 else 's'}"
