"""The demo's picture: the loss over the steps, and the steps over time, with every failure marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Records, Step
from report import Recovery

_CURVE, _REPEATED, _MARK = "#1f5fa8", "#e8912d", "#b3261e"


def draw(path: Path, records: Records, recoveries: Sequence[Recovery], started: float, title: str) -> None:
    """Write the picture as a PNG. ``started``: the wall time of the command, where the time axis begins."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")  # drawn without a display, and without pyplot's state
    figure.suptitle(title)
    over_steps, over_time = figure.subplots(2, 1, height_ratios=[3, 2])
    _draw_loss(over_steps, records, recoveries)
    _draw_progress(over_time, records, recoveries, started)
    figure.savefig(path, dpi=120)


def final_steps(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """Split into the steps that count, one for each number, and those that a recovery has repeated later."""
    last = {step.step: step for step in steps}
    return list(last.values()), [step for step in steps if last[step.step] is not step]


def _draw_loss(axes: Axes, records: Records, recoveries: Sequence[Recovery]) -> None:
    counted, repeated = final_steps(records.steps)
    axes.plot([step.step for step in counted], [step.loss for step in counted], color=_CURVE, label="loss")
    if repeated:
        xs, ys = [step.step for step in repeated], [step.loss for step in repeated]
        axes.plot(xs, ys, "o", color=_REPEATED, markersize=7, fillstyle="none", label="lost and repeated")
    for number, one in enumerate(recoveries):
        axes.axvline(one.after_step, color=_MARK, linestyle="--", linewidth=1)
        # Staggered, so that failures close to each other stay legible; to the left where there is no room to the right.
        left = one.after_step > 0.7 * records.last_step
        axes.annotate(
            _label(one),
            (one.after_step, 0.96 - 0.13 * (number % 3)),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            horizontalalignment="right" if left else "left",
            verticalalignment="top",
            color=_MARK,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats for each byte)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


def _draw_progress(axes: Axes, records: Records, recoveries: Sequence[Recovery], started: float) -> None:
    # A jump back is a line of its own: each run is drawn apart.
    ends = [*(run.time for run in records.runs[1:]), float("inf")]
    for run, end in zip(records.runs, ends, strict=False):
        steps = [step for step in records.steps if run.time <= step.time < end]
        axes.plot([step.time - started for step in steps], [step.step for step in steps], ".-", color=_CURVE)
    for one in recoveries:
        began = one.began - started
        axes.axvspan(began, began + (one.recovered or 0.0), color=_MARK, alpha=0.15)
        axes.axvline(began, color=_MARK, linestyle="--", linewidth=1)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds since the command")
    axes.set_ylabel("step")
    axes.grid(alpha=0.3)


def _label(one: Recovery) -> str:
    after = "never recovered" if one.recovered is None else f"trains again after {one.recovered:.1f} s"
    return f"{one.failure.what}\n{after}"
