"""What the launcher tells the person who started it, whichever way it is shown."""

from __future__ import annotations

from typing import Literal, Protocol

from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.observe.jobview import JobView

Stream = Literal["out", "err"]


class View(Protocol):
    """Calls come from one thread and must not block for long; none of them raises because of what it is told."""

    def worker_line(self, rank: int, stream: Stream, text: str) -> None:
        """Show a line that a rank has printed."""
        ...

    def snapshot(self, job: JobView) -> None:
        """Take note of how the job stands now."""
        ...

    def plan(self, plan: Plan, previous: Plan | None) -> None:
        """Tell what happened and what was decided about it: a new generation was committed."""
        ...

    def notice(self, text: str) -> None:
        """Tell anything else, in one sentence."""
        ...

    def close(self, result: Result | None) -> None:
        """End with a summary, and the first traceback if the job failed. A second call does nothing."""
        ...
