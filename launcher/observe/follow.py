"""From one look at the store to the next: what is new is told once, in order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tlaunch.launcher.observe.events import EventLog
from tlaunch.launcher.observe.jobview import JobView
from tlaunch.launcher.observe.view import View


@dataclass
class Follower:
    """Passes each new plan to the events log and the view, however many were committed between two looks."""

    view: View
    log: EventLog
    _seen: int = 0

    def look(self, job: JobView) -> None:
        """Take in the job as it stands now."""
        self.view.snapshot(job)
        for index, plan in enumerate(job.history):
            if plan.generation > self._seen:
                then = replace(job, history=job.history[: index + 1])
                self.log.write(plan, then.count("spare"))
                self.view.plan(plan, job.history[index - 1] if index else None)
                self._seen = plan.generation
