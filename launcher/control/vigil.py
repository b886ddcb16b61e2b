"""Noticing that the ranks of a node do not get any further, without a word from the script.

A rank gets further when it prints, when its main thread both computes and waits, as it does in every step of a
training, or when its stack changes. One that waits in a collective only sleeps; one whose collective is the GPU's may
spin for ever, and so does an endless loop: computing alone is no sign of life. The kernel's counters are looked at a
few times within the job's ``hang_timeout``. Only a rank for which they have stood still for half of it is asked for the
stack of its main thread: with a signal, which ``faulthandler`` answers even while other code holds the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tlaunch.launcher.control.endings import LONGEST_OUTPUT, last_words
from tlaunch.launcher.control.program import RankFiles
from tlaunch.launcher.core.hang import Hung
from tlaunch.launcher.core.stacks import Stack, as_text, parse, stands_at, waits_in
from tlaunch.launcher.process.messages import STACK_SIGNAL

if TYPE_CHECKING:
    from tlaunch.launcher.control.slots import Running

log = logging.getLogger(__name__)

LOOKS = 8
"""How often ranks are looked at within the timeout. A node that was stopped itself has to come to as many again."""

ASKED = LOOKS // 2
"""After so many looks without a sign of life a rank is asked for its stack."""

WORKING = 0.01
"""The share of time from which on a main thread counts as computing. To look for news now and then takes less."""

WAITING = 5
"""So often in all a main thread waits that is at work: once or twice in a step, which may take long."""

_TICKS = os.sysconf("SC_CLK_TCK")
_LONGEST_DUMP = 1 << 16
_WAITS = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)$", re.MULTILINE)
_CAUGHT = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """A rank at a moment of monotonic time: the bytes that it has ``printed``, and its main thread.

    ``cpu``: seconds that it has computed; ``waits``: how often it has waited for something; ``answers``: whether the
    process answers ``STACK_SIGNAL``, which would end any other.
    """

    at: float
    printed: int
    cpu: float
    waits: int
    answers: bool

    def follows(self, before: Sample) -> bool:
        """Whether the rank has got any further since an earlier moment, as far as its counters tell."""
        if self.printed != before.printed:
            return True
        computed = self.cpu - before.cpu >= WORKING * (self.at - before.at) and self.cpu > before.cpu
        # Of one that does not say where it stands, nobody can tell an endless loop from work.
        return computed and (self.waits - before.waits >= WAITING or not self.answers)


def sample(pid: int, files: RankFiles, now: float) -> Sample | None:
    """Look at a process; ``None`` when it has ended."""
    main = Path(f"/proc/{pid}/task/{pid}")
    try:
        stat = (main / "stat").read_text().rpartition(")")[2].split()
        status = (main / "status").read_text()
        printed = sum(Path(path).stat().st_size for path in (files.out, files.err))
    except OSError:
        return None
    waits, caught = _WAITS.search(status), _CAUGHT.search(status)
    if waits is None or caught is None:
        return None
    answers = bool(int(caught[1], 16) >> (STACK_SIGNAL - 1) & 1)
    return Sample(now, printed, (int(stat[11]) + int(stat[12])) / _TICKS, int(waits[1]), answers)


@dataclass(slots=True)
class _Watch:
    """What is known of a rank: how it was when it last got further, ``since`` when, and for how many looks it is quiet.

    It is compared with that moment, not with the last look: of a long step there may be little to see between two.
    """

    rank: Running
    moved: Sample | None
    since: float
    quiet: int = 0
    stack: Stack = ()

    def look(self, now: float) -> None:
        """Look whether the rank has got any further."""
        found = sample(self.rank.process.pid, self.rank.files, now)
        if found is None or self.moved is None or self.rank.process.stopped or found.follows(self.moved):
            self._restart(found, now)
            return
        self.quiet += 1
        asked = self.quiet > ASKED and found.answers
        stack = self._read() if asked else ()
        if stack and self.stack and stack != self.stack:
            self._restart(found, now)
            return
        self.stack = stack or self.stack
        if self.quiet >= ASKED and found.answers:
            with contextlib.suppress(OSError):
                os.truncate(self.rank.files.stack, 0)
            self.rank.process.signal_alone(STACK_SIGNAL)

    def _restart(self, found: Sample | None, now: float) -> None:
        self.moved, self.since, self.quiet, self.stack = found, now, 0, ()

    def _read(self) -> Stack:
        try:
            with Path(self.rank.files.stack).open(encoding="ascii", errors="replace") as file:
                return parse(file.read(_LONGEST_DUMP))
        except OSError:
            return ()

    def stuck(self, share: float) -> Hung:
        """Return what the controller has to know. ``share``: how much of a report is for one rank."""
        waits = waits_in(self.stack)
        found = Hung(
            since=self.since,
            ran=self.since - self.rank.started,
            host=socket.gethostname(),
            place=stands_at(self.stack),
            waits=waits,
        )
        if waits is not None:
            return found
        words = last_words(self.rank.files, recorded=False)[-int(LONGEST_OUTPUT * share) :]
        return replace(found, stack=as_text(self.stack) if self.stack else None, output=words or None)


class Vigil:
    """Watches over the ranks of a node. ``tell`` is told which are stuck: all of them, or none.

    Ranks that wait for one that works, perhaps on another node, are no news. So nothing is said as long as any rank of
    the node gets further, and what is said changes at most twice within the timeout.
    """

    def __init__(
        self,
        running: Callable[[], Iterable[Running]],
        tell: Callable[[Mapping[int, Hung]], None],
        *,
        timeout: float,
        slots: int,
    ) -> None:
        self._running = running
        self._tell = tell
        self._timeout = timeout
        self._share = min(1.0, 8 / slots)
        self._watches: dict[int, _Watch] = {}
        self._told: frozenset[int] = frozenset()

    async def run(self) -> NoReturn:
        """Watch for ever."""
        while True:
            await asyncio.sleep(self._timeout / LOOKS)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Look at every rank that runs."""
        running = {rank.process.pid: rank for rank in self._running()}
        self._watches = {
            pid: self._watches.get(pid) or _Watch(rank, None, rank.started) for pid, rank in running.items()
        }
        for watch in self._watches.values():
            watch.look(now)
        stuck = all(watch.quiet >= LOOKS for watch in self._watches.values())
        found = frozenset(self._watches if stuck else ())
        if found != self._told:
            self._told = found
            self._tell({self._watches[pid].rank.seat.rank: self._watches[pid].stuck(self._share) for pid in found})
