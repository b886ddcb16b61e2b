"""The live view on a terminal: the picture of the job at the bottom, what the ranks print scrolling above it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.observe.board import board, happenings
from tlaunch.launcher.observe.jobview import JobView
from tlaunch.launcher.observe.report import account, row, summary
from tlaunch.launcher.observe.view import Stream

PERIOD = 0.25
"""Seconds between two drawings. Drawing for each line that a rank prints would take a processor of its own."""

SHOWN = 5
"""How many of the latest happenings are shown."""

MOST_LINES = 10_000
"""How many lines may wait for a terminal that does not take them; all of them stand in the ranks' log files."""

_JOIN = 2.0


def clock() -> str:
    """Return the time of day."""
    return time.strftime("%H:%M:%S")


@dataclass
class _State:
    """What is to be shown. Guarded by the view's lock."""

    job: JobView | None = None
    told: deque[tuple[str, str, str]] = field(default_factory=lambda: deque(maxlen=SHOWN))
    history: list[Plan] = field(default_factory=list)
    lines: deque[Text] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    changed: bool = False


class LiveView:
    """Collects what it is told; a thread of its own draws, so that a slow terminal holds nobody up.

    When the terminal is gone nothing is drawn any more, and the job is not disturbed by that.
    """

    def __init__(self, job_id: str, console: Console | None = None, now: Callable[[], str] = clock) -> None:
        self._job_id = job_id
        self._console = console or Console(highlight=False)
        self._now = now
        self._began = time.monotonic()
        self._state = _State()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._started = False
        self._gone = False
        self._live = Live(
            console=self._console, get_renderable=self.picture, auto_refresh=False, transient=True, screen=False
        )
        self._thread = threading.Thread(target=self._draw_on, name="tlaunch-live-view", daemon=True)

    def worker_line(self, rank: int, stream: Stream, text: str) -> None:
        line = Text.assemble((f"[{rank}] ", "dim" if stream == "out" else "red"), Text.from_ansi(text))
        with self._lock:
            self._state.lines.append(line)

    def snapshot(self, job: JobView) -> None:
        with self._lock:
            self._state.job = job
            self._state.changed = True
        if not self._started and not self._closed.is_set():
            self._started = True
            self._draw(self._live.start)
            self._thread.start()

    def plan(self, plan: Plan, previous: Plan | None) -> None:
        told = row(plan)
        with self._lock:
            self._state.history.append(plan)
            self._state.told.append((f"{self._now()}  {told.generation}", told.cause, told.decision))
            if plan.result is None and (more := account(plan)):
                said = (f"{self._now()} tlaunch: {told}", *more)
                self._state.lines.extend(Text(line, "bold") for line in said)
            self._state.changed = True

    def notice(self, text: str) -> None:
        with self._lock:
            self._state.lines.append(Text(f"{self._now()} tlaunch: {text}", "bold"))

    def close(self, result: Result | None) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        if self._started:
            self._thread.join(_JOIN)
        self._draw(self._print_lines)
        if self._started:
            self._draw(self._live.stop)
        if result is not None:
            self._draw(lambda: self._sum_up(result))

    def _sum_up(self, result: Result) -> None:
        for line in summary(self._job_id, self._state.history, result):
            self._console.print(Text(line), soft_wrap=True)

    def picture(self) -> Group:
        """Return the picture of this moment, for the size of the terminal."""
        with self._lock:
            job, told = self._state.job, list(self._state.told)
        if job is None:
            return Group()
        elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - self._began))
        width, height = self._console.size
        # The terminal's last line stays free, and a happening may need two lines.
        return Group(board(job, width, height - 2 - 2 * len(told), elapsed), happenings(told))

    def _draw_on(self) -> None:
        drawn = 0.0
        while not self._closed.wait(PERIOD):
            self._draw(self._print_lines)
            with self._lock:
                changed, self._state.changed = self._state.changed, False
            if changed or time.monotonic() - drawn >= 1.0:  # the clock in the headline goes on
                drawn = time.monotonic()
                self._draw(self._live.refresh)

    def _draw(self, something: Callable[[], None]) -> None:
        if self._gone:
            return
        try:
            something()
        except OSError:  # the terminal was closed: EIO
            self._gone = True

    def _print_lines(self) -> None:
        with self._lock:
            lines, self._state.lines = self._state.lines, deque(maxlen=MOST_LINES)
        if lines:
            self._console.print(Text("\n").join(lines), soft_wrap=True)
