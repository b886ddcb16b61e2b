"""What happened to a job, in few words: each generation with its cause and what was decided about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tlaunch.launcher.core.plan import Plan, Result

_SHOWN = 3


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


def summary(job_id: str, history: Sequence[Plan], result: Result) -> list[str]:
    """Return the lines to end with: what happened, if anything did, how it ended, and the first traceback."""
    rows = [str(row(plan)) for plan in history if plan.generation > 1 and plan.result is None]
    lines = ["what happened:", *(f"  {text}" for text in rows)] if rows else []
    lines.append(outcome(job_id, result, history))
    if result.traceback:
        lines += ["the first failure:", *result.traceback.rstrip().splitlines()]
    return lines
