"""Asking a policy within a limit of time: users write policies, and one that hangs must not hang the job."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.events import Event
from tlaunch.launcher.core.planner import LADDER, Outcome, decide
from tlaunch.launcher.core.policy import Policy


class Decider:
    """Decides by a policy. The default one is ours and decides at once; a user's has ``limit`` seconds.

    A user's policy runs in a thread, so that the agent goes on renewing its lease. When the limit is over the ladder
    decides and the thread is left to itself: nothing can end it, and until it has come back the policy is not asked.
    """

    def __init__(self, policy: Policy, limit: float) -> None:
        self._policy = policy
        self._limit = limit
        self._answer: Future[Outcome] | None = None

    async def decide(self, cluster: Cluster, events: Sequence[Event]) -> Outcome:
        """Return what the core's ``decide`` says, and raise what it raises."""
        if type(self._policy) is Policy:
            return decide(cluster, events, self._policy)
        name = type(self._policy).__name__
        if self._answer is not None and not self._answer.done():
            return _by_the_ladder(cluster, events, f"policy {name} has not come back from an earlier question")
        answer = self._answer = Future[Outcome]()
        answer.set_running_or_notify_cancel()  # so that an answer that nobody waits for any more does no harm

        def ask() -> None:
            try:
                answer.set_result(decide(cluster, events, self._policy))
            except BaseException as error:  # noqa: BLE001 - it is raised again where the answer is awaited
                answer.set_exception(error)

        # A daemon, and not of the default executor: the interpreter would wait for any other thread before it exits.
        threading.Thread(target=ask, name="policy", daemon=True).start()
        try:
            async with asyncio.timeout(self._limit):
                return await asyncio.wrap_future(answer)
        except TimeoutError:
            return _by_the_ladder(cluster, events, f"policy {name} took longer than {self._limit:g} s")


def _by_the_ladder(cluster: Cluster, events: Sequence[Event], why: str) -> Outcome:
    outcome = decide(cluster, events, LADDER)
    reason = f"{why}; the ladder decides"
    plan = None if outcome.plan is None else replace(outcome.plan, reasons=(reason, *outcome.plan.reasons))
    return replace(outcome, plan=plan, reasons=(reason, *outcome.reasons))
