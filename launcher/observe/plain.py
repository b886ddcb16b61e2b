"""Plain log lines, for everything that is not a terminal.

What a rank prints keeps its stream and gets its rank in front; what tlaunch has to say goes to standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.observe.jobview import JobView
from tlaunch.launcher.observe.report import account, row, summary
from tlaunch.launcher.observe.view import Stream
from tlaunch.launcher.observe.writer import Writer


def local_time() -> str:
    """Return the wall time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


class PlainView:
    """One line for each thing that happens. ``out`` and ``err`` are file descriptors."""

    def __init__(self, job_id: str, out: int = 1, err: int = 2, clock: Callable[[], str] = local_time) -> None:
        self._job_id = job_id
        self._fds: dict[Stream, int] = {"out": out, "err": err}
        self._clock = clock
        self._history: list[Plan] = []
        self._writer = Writer()
        self._closed = False

    def worker_line(self, rank: int, stream: Stream, text: str) -> None:
        self._writer.write(self._fds[stream], f"[{rank}] {text}")

    def snapshot(self, job: JobView) -> None:
        pass  # Everything that is worth a line comes by the other ways.

    def plan(self, plan: Plan, previous: Plan | None) -> None:
        self._history.append(plan)
        if plan.result is None:  # the end is told by close, with all that belongs to it
            for line in (str(row(plan)), *account(plan)):
                self.notice(line)

    def notice(self, text: str) -> None:
        self._writer.write(self._fds["err"], f"{self._clock()} tlaunch: {text}")

    def close(self, result: Result | None) -> None:
        if self._closed:
            return
        self._closed = True
        if result is not None:
            for line in summary(self._job_id, self._history, result):
                self.notice(line)
        self._writer.close()
