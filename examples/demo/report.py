"""From what was recorded to what the demo says: for each failure the decision, the time it took, and the steps lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from records import Records, Start


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that the demo caused: of a rank, GPU or node (``kind``), and in words (``what``).

    ``asked`` is the wall time in seconds at which ``tlaunch kill`` was started.
    """

    kind: str
    what: str
    asked: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """How the job came back from a failure.

    ``began``: the wall time, in seconds, from which durations are counted. It is the end of ``after_step``, the last
    step that was completed before: the failure came after it, so what is counted is rather too long than too short.
    ``causes`` and ``decisions``: those of all plans made until training went on, a sentence each. ``decided`` and
    ``recovered``: seconds to the first plan and to the end of the next step. ``resumed_at``: the checkpoint's step.
    ``steps_lost``: completed steps that were done again. What never happened is ``None``.
    """

    failure: Failure
    after_step: int
    began: float
    causes: tuple[str, ...]
    decisions: tuple[str, ...]
    decided: float | None
    recovered: float | None
    resumed_at: int | None
    steps_lost: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the launcher ended, when it was started and ended (wall times in seconds), and what the job took at most.

    ``peak_memory``: bytes of all its processes together (proportional set size, sampled). ``memory_taken``: by how many
    bytes the machine's available memory fell, whoever took them.
    """

    exit_code: int
    started: float
    ended: float
    peak_memory: int
    memory_taken: int
    peak_processes: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the demo shows at its end. ``problems`` is empty when all went as it should."""

    outcome: Outcome
    recoveries: tuple[Recovery, ...]
    problems: tuple[str, ...]
    first_step_after: float | None
    step_time: float | None
    steps: int
    first_loss: float | None
    final_loss: float | None

    def as_json(self) -> dict[str, Any]:
        """The report as JSON knows it. Durations and times are in seconds, memory in bytes, the loss in nats."""
        return asdict(self)


def make_report(
    records: Records, failures: Sequence[Failure], outcome: Outcome, *, planned: int, steps: int, world_size: int
) -> Report:
    """Evaluate a run of ``steps`` steps on ``world_size`` ranks in which ``planned`` failures were to be caused."""
    ends = [*(failure.asked for failure in failures[1:]), outcome.ended]
    recoveries = tuple(recovery(records, failure, until) for failure, until in zip(failures, ends, strict=False))
    first = records.steps[0] if records.steps else None
    last = records.steps[-1] if records.steps else None
    return Report(
        outcome=outcome,
        recoveries=recoveries,
        problems=tuple(_problems(records, recoveries, outcome, planned=planned, steps=steps, world_size=world_size)),
        first_step_after=first.time - outcome.started if first else None,
        step_time=_step_time(records),
        steps=records.last_step,
        first_loss=first.loss if first else None,
        final_loss=last.loss if last else None,
    )


def recovery(records: Records, failure: Failure, until: float) -> Recovery:
    """Find out how the job came back from ``failure``, in what was recorded between it and ``until``.

    Training may go on more than once, when the failure shows itself bit by bit: the last time counts.
    """
    runs = [run for run in records.runs if failure.asked < run.time <= until]
    before = [step for step in records.steps if step.time < (runs[0].time if runs else until)]
    began = max(failure.asked, before[-1].time) if before else failure.asked
    step = next((step for step in records.steps if runs and runs[-1].time <= step.time <= until), None)
    plans = [plan for plan in records.plans if failure.asked < plan.time <= (step.time if step else until)]
    return Recovery(
        failure=failure,
        after_step=before[-1].step if before else 0,
        began=began,
        causes=tuple(cause for plan in plans for cause in plan.causes),
        decisions=tuple(decision for plan in plans for decision in plan.decisions),
        decided=plans[0].time - began if plans else None,
        recovered=step.time - began if step else None,
        resumed_at=runs[-1].step if runs else None,
        steps_lost=sum(_repeated(records, run) for run in runs) if runs else None,
    )


def _repeated(records: Records, run: Start) -> int:
    """How many completed steps a run does again."""
    before = [step.step for step in records.steps if step.time < run.time]
    return max(before[-1] - run.step, 0) if before else 0


def _problems(
    records: Records, recoveries: Sequence[Recovery], outcome: Outcome, *, planned: int, steps: int, world_size: int
) -> list[str]:
    problems = []
    if outcome.exit_code != 0:
        problems.append(f"the job ended with exit code {outcome.exit_code}, expected 0")
    if records.last_step != steps:
        problems.append(f"the last step completed was {records.last_step}, expected {steps}")
    if len(recoveries) < planned:
        problems.append(f"only {len(recoveries)} of {planned} failures were caused")
    problems += [f"never recovered: {one.failure.what}" for one in recoveries if one.recovered is None]
    seen = {run.world_size for run in records.runs} | {step.world_size for step in records.steps}
    problems += [f"there were {size} ranks for a while, expected {world_size}" for size in sorted(seen - {world_size})]
    return problems


def _step_time(records: Records) -> float | None:
    """The median time of a step in seconds, without the first of each run, which builds what the others use."""
    starts = [run.time for run in records.runs]
    pairs = zip(records.steps, records.steps[1:], strict=False)
    times = [b.time - a.time for a, b in pairs if not any(a.time <= start <= b.time for start in starts)]
    return median(times) if times else None
