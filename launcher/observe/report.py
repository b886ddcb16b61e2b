"""What happened to a job, in few words: each generation with its cause and what was decided about it.

Of several ranks that failed, the first one is told of: where, how, and what it said last. The others are one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tlaunch.launcher.core.events import RankFailed, StopRequested, hardware_failed
from tlaunch.launcher.core.plan import Plan, Result

_SHOWN = 3

LINES = 5
"""How many of its last lines are shown when a rank has failed and the job goes on; at the end all that were kept."""


@dataclass(frozen=True, slots=True)
class Row:
    """One generation."""

    generation: int
    cause: str
    decision: str

    def __str__(self) -> str:
        return f"generation {self.generation}: {self.cause} -> {self.decision}"


def row(plan: Plan) -> Row:
    """Return what led to a plan and what it does."""
    return Row(plan.generation, brief(map(str, plan.events)) or "?", brief(plan.decisions) or "no change")


def brief(sentences: Iterable[str]) -> str:
    """Join sentences into one line; when a node with all its ranks is lost, the first few say enough."""
    texts = list(sentences)
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def outcome(job_id: str, result: Result, history: Sequence[Plan]) -> str:
    """Return one sentence about how a job ended. Of a long history, the store still holds the latest plans only."""
    generations = max((plan.generation for plan in history if plan.result is None), default=0)
    after = f" after {generations} generations" if generations > 1 else ""
    how = "succeeded" if result.code == 0 else f"ended with exit code {result.code}"
    return f"job {job_id} {how}{after}: {result.reason}"


def first_failure(plan: Plan) -> RankFailed | None:
    """Return the failed rank that a plan is the answer to; ``None`` where the cause is another, as lost hardware."""
    if hardware_failed(plan.events) or any(isinstance(event, StopRequested) for event in plan.events):
        return None
    return next((event for event in plan.events if isinstance(event, RankFailed)), None)


def account(plan: Plan) -> list[str]:
    """Return what there is to say of a failure that was recovered from, beside its row: why, and the last words."""
    failure = first_failure(plan)
    if failure is None and not hardware_failed(plan.events):
        return []
    return [*_why(plan), *(_last_lines(failure, LINES) if failure else []), *_stack(failure)]


def _why(plan: Plan) -> list[str]:
    return [f"  {reason}" for reason in plan.reasons[:_SHOWN]]


def _stack(failure: RankFailed | None) -> list[str]:
    """Return where a rank hangs; an exception has been shown as the rank printed it."""
    if failure is None or failure.exit.hang is None or failure.exit.traceback is None:
        return []
    return [f"  {line}" for line in failure.exit.traceback.rstrip().splitlines()[-2 * LINES :]]


def _last_lines(failure: RankFailed, most: int | None = None) -> list[str]:
    ended = failure.exit
    lines = ended.output.splitlines() if ended.output else []
    lines = lines if most is None else lines[-most:]
    said = "its last lines:" if lines else "it printed nothing else" if ended.traceback else "it printed nothing"
    where = f" on host {ended.host}" if ended.host else ""
    ran = f"{ended.ran:.{1 if ended.ran < 10 else 0}f} s"
    return [f"  rank {failure.rank} had run for {ran}{where}; {said}", *(f"  | {line}" for line in lines)]


def summary(job_id: str, history: Sequence[Plan], result: Result) -> list[str]:
    """Return the lines to end with: what happened, how it ended, and which rank failed first, with its traceback."""
    rows = [str(row(plan)) for plan in history if plan.generation > 1 and plan.result is None]
    lines = ["what happened:", *(f"  {text}" for text in rows)] if rows else []
    lines.append(outcome(job_id, result, history))
    last = history[-1] if history else None
    failure = None if last is None or last.result is None else first_failure(last)
    if last is not None and failure is not None:
        lines.append(f"the first failure: rank {failure.rank} on {failure.slot}: {failure.exit.how}")
        lines += [*_why(last), *_last_lines(failure)]
    elif result.traceback:
        lines.append("the first failure:")
    return [*lines, *(result.traceback.rstrip().splitlines() if result.traceback else [])]
