"""Telling the controller how a node's slots are, without all nodes of a large job doing so at once.

When one rank fails, its peers fail with it, and say so. Who reports the cause does not wait. Of those that have only
lost a peer the controller needs a few, should nobody be left who knows the cause; the others wait, each for another
time, and have nothing to say any more when the next plan is there before.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import NoReturn

from tlaunch.launcher.control.insist import OwnKey
from tlaunch.launcher.control.records import Report
from tlaunch.launcher.core.codec import encode
from tlaunch.launcher.store.protocol import Delete, Put

AT_ONCE = 64
"""In a job of so many nodes nobody waits."""

VICTIMS = 500
"""How many nodes whose ranks have only lost a peer say so in a second."""


def longest_wait(nodes: int, limit: float) -> float:
    """Return for how many seconds a victim's report may be held back, ``limit`` at most."""
    return min(limit, max(0, nodes - AT_ONCE) / VICTIMS)


class Reporter:
    """Keeps ``own`` equal to ``report()``. ``wait``: for how long a victim's report is held back at most, in seconds.

    Whoever makes one calls ``first`` and ``begin`` as the node registers, then ``due`` whenever the report has changed.
    """

    def __init__(self, own: OwnKey, report: Callable[[], Report], wait: float) -> None:
        self._own = own
        self._report = report
        self._wait = wait
        self._due = asyncio.Event()
        self._said = Report(0)

    def first(self) -> Put | Delete:
        """Return the write that goes with the registration: what an agent of our name reported before us is over."""
        self._said = self._report()
        return self._own.first(encode(self._said) if self._said.bad else None)

    async def begin(self, revision: int) -> None:
        """Take note of the revision of that write. 0: it was not done, so do it now."""
        self._own.adopt(revision if self._said.bad else 0)
        if not revision:
            await self._own.put(encode(self._said))

    def due(self) -> None:
        """Have the report written anew."""
        self._due.set()

    async def run(self) -> NoReturn:
        """Write each report, for ever."""
        while True:
            await self._due.wait()
            self._due.clear()
            if self._wait and self._only_victims() and await self._changed_within(random.uniform(0, self._wait)):  # noqa: S311  not a secret
                continue
            report, said = self._report(), self._said
            # A plan that came meanwhile leaves nothing to say of the generation before.
            if report.exits or report.hung or said.hung or report.bad != said.bad:
                await self._own.put(encode(report))
                self._said = report

    def _only_victims(self) -> bool:
        report, said = self._report(), self._said
        return (report.bad, report.hung) == (said.bad, said.hung) and all(
            ended.lost_peer for ended in report.exits.values()
        )

    async def _changed_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._due.wait()
        except TimeoutError:
            return False
        return True
