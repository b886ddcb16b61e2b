"""Ranks that do not get any further: when all of them hang, and which one the others wait for. Pure.

A rank that hangs holds all others up within a step, so that they stand still as well. Where they stand tells them
apart: those that wait are in a collective, or in what waits for one; the first cause is somewhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tlaunch.launcher.core.events import Exit, named
from tlaunch.launcher.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Hung:
    """A rank that has not got any further for the job's ``hang_timeout``, as its agent sees it.

    ``since``: when it last did, in seconds on the monotonic clock of its machine, the ``host``; ``ran``: for how many
    seconds it had run then. ``place``: where it stands in the script, ``None`` where that is not known. ``waits``: the
    function in which it waits for other ranks. ``stack`` and ``output``, its last lines, are told of those that do not.
    """

    since: float
    ran: float
    host: str
    place: str | None = None
    waits: str | None = None
    stack: str | None = None
    output: str | None = None


def hanging(
    plan: Plan, exits: Mapping[int, Exit], stuck: Mapping[int, Hung], clocks: Mapping[str, float], timeout: float
) -> Mapping[int, Exit]:
    """Return what stands for the end of the rank that holds all others up, as long as all hang; else nothing.

    When that cannot be told the lowest rank stands for all. ``clocks``: as in ``Cluster``.
    """
    left = {rank: one for rank, one in stuck.items() if rank not in exits}
    if not left or len(left) + len(exits) < plan.world_size or not all(ended.ok for ended in exits.values()):
        return {}
    found = suspects(left)
    if not found:
        rank = min(left)
        return {rank: _exit(left[rank], f"{_where(left[rank], timeout)}; {_all_alike(left)}", sure=False)}

    def order(rank: int) -> tuple[bool, float, int]:
        clock = clocks.get(plan.seats[rank].slot.node)
        return clock is None, left[rank].since + (clock or 0.0), rank

    first, *more = sorted(found, key=order)
    parts = [_where(left[first], timeout)]
    if waiting := left.keys() - set(found):
        what, _ = Counter(left[rank].waits or left[rank].place for rank in sorted(waiting)).most_common(1)[0]
        parts.append(f"{named(waiting)} wait{'s' * (len(waiting) == 1)} for it in {what}")
    if more:
        parts.append(f"{named(more)} hang{'s' * (len(more) == 1)} too, elsewhere than in a collective")
    return {first: _exit(left[first], "; ".join(parts), sure=True)}


def suspects(stuck: Mapping[int, Hung]) -> tuple[int, ...]:
    """Return the ranks that hold all others up; none when that cannot be told."""
    others = {rank for rank, one in stuck.items() if one.waits is not None}
    if not others and len(stuck) > 1:
        # A script may wait in a call that leaves no trace of torch on the stack. Where most are, that is what they do.
        places = Counter(one.place for one in stuck.values())
        common, number = places.most_common(1)[0]
        if common is not None and 2 * number > len(stuck):
            others = {rank for rank, one in stuck.items() if one.place == common}
    found = sorted(stuck.keys() - others)
    return tuple(found) if others or len(stuck) == 1 else ()


def _exit(one: Hung, message: str, *, sure: bool) -> Exit:
    return Exit(
        message=message,
        traceback=one.stack,
        output=one.output,
        host=one.host,
        time=one.since,
        ran=one.ran,
        hang="cause" if sure else "unclear",
    )


def _where(one: Hung, timeout: float) -> str:
    return f"for {timeout:g} s {f'at {one.place}' if one.place else 'at an unknown place'}"


def _all_alike(stuck: Mapping[int, Hung]) -> str:
    if all(one.waits for one in stuck.values()):
        where = f"all {len(stuck)} ranks wait in collectives" if len(stuck) > 1 else "it waits in a collective"
    else:
        where = f"none of {len(stuck)} ranks is known to wait for the others"
    return f"{where}, so that the cause cannot be told"
