"""Plain log lines, for everything that is not a terminal.

What a rank prints keeps its stream and gets its rank in front; what tlaunch has to say goes to standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.observe.jobview import JobView
from tlaunch.launcher.observe.report import row, summary
from tlaunch.launcher.observe.view import Stream


def local_time() -> str:
    """Return the wall time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


class PlainView:
    """One line for each thing that happens."""

    def __init__(self, job_id: str, out: TextIO, err: TextIO, clock: Callable[[], str] = local_time) -> None:
        self._job_id = job_id
        self._out = out
        self._err = err
        self._clock = clock
        self._history: list[Plan] = []
        self._closed = False

    def worker_line(self, rank: int, stream: Stream, text: str) -> None:
        print(f"[{rank}] {text}", file=self._out if stream == "out" else self._err, flush=True)

    def snapshot(self, job: JobView) -> None:
        pass  # Everything that is worth a line comes by the other ways.

    def plan(self, plan: Plan, previous: Plan | None) -> None:
        self._history.append(plan)
        if plan.result is None:  # the end is told by close, with all that belongs to it
            self.notice(str(row(plan)))

    def notice(self, text: str) -> None:
        print(f"{self._clock()} tlaunch: {text}", file=self._err, flush=True)

    def close(self, result: Result | None) -> None:
        if not self._closed and result is not None:
            for line in summary(self._job_id, self._history, result):
                self.notice(line)
        self._closed = True
