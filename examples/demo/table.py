"""The demo's closing words: a table of the failures, and the numbers of the whole run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from report import Recovery, Report
from rich.console import Console
from rich.table import Table

_SHOWN = 2  # decisions; a lost node leads to one for each of its ranks
_WIDTH = 120  # columns where there is no terminal


def show(report: Report, console: Console | None = None) -> None:
    """Print the table and the summary."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = _WIDTH
    console.print()
    console.print(_table(report.recoveries))
    console.print("Times are counted from the last step that was completed before the failure.\n")
    for line in summary(report):
        console.print(line, markup=False)
    for problem in report.problems:
        console.print(f"demo: {problem}", style="bold red", markup=False)


def summary(report: Report) -> Iterator[str]:
    """Yield the numbers of the run, a line each."""
    outcome = report.outcome
    yield f"first step      {_seconds(report.first_step_after)} after the command"
    yield f"time for a step {_seconds(report.step_time, 2)} (median)"
    yield (
        f"memory          {outcome.peak_memory / 1e9:.1f} GB in {outcome.peak_processes} processes at most; "
        f"the machine's available memory fell by {outcome.memory_taken / 1e9:.1f} GB"
    )
    if report.first_loss is not None and report.final_loss is not None:
        yield f"loss            {report.first_loss:.2f} -> {report.final_loss:.2f} in {report.steps} steps"
    yield f"total           {_seconds(outcome.ended - outcome.started)}, exit code {outcome.exit_code}"


def _table(recoveries: Sequence[Recovery]) -> Table:
    table = Table(title="What happened", title_justify="left", show_lines=True)
    table.add_column("after step", justify="right")
    table.add_column("failure")
    table.add_column("decision", overflow="fold")
    table.add_column("decided\nafter", justify="right")
    table.add_column("time to\nrecover", justify="right")
    table.add_column("steps\nlost", justify="right")
    for one in recoveries:
        table.add_row(
            str(one.after_step),
            one.failure.what,
            brief(one.decisions),
            _seconds(one.decided, 2),
            _seconds(one.recovered),
            "-" if one.steps_lost is None else str(one.steps_lost),
        )
    return table


def brief(decisions: Sequence[str]) -> str:
    """The first decisions, and how many more there were."""
    if not decisions:
        return "none"
    more = len(decisions) - _SHOWN
    return "\n".join([*decisions[:_SHOWN], *([f"and {more} more like these"] if more > 0 else [])])


def _seconds(value: float | None, digits: int = 1) -> str:
    return "never" if value is None else f"{value:.{digits}f} s"
