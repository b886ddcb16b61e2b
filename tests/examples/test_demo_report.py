"""What examples/demo makes of the records of a run: the table, the verdict, the JSON and the picture."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.examples.conftest import EXAMPLES

STARTED = 1_000_000.0
PNG = b"\x89PNG\r\n\x1a\n"


def _write(path: Path, *records: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def _start(step: int, at: float, world_size: int = 4) -> dict[str, Any]:
    return {"event": "start", "step": step, "time": STARTED + at, "world_size": world_size, "restart_count": 0}


def _steps(first: int, last: int, at: float, world_size: int = 4) -> list[dict[str, Any]]:
    """A step each second, the first of them complete at ``at``."""
    return [
        {"event": "step", "step": n, "loss": 5 - n / 10, "time": STARTED + at + n - first, "world_size": world_size}
        for n in range(first, last + 1)
    ]


def _plan(generation: int, at: float, *decisions: str) -> dict[str, Any]:
    return {"generation": generation, "time": STARTED + at, "causes": [f"cause {generation}"], "decisions": decisions}


@pytest.fixture
def run(demo: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """Two failures: rank 1 dies in step 8, two steps are lost; a node dies in step 13, which is seen bit by bit."""
    metrics, plans = tmp_path / "metrics.jsonl", tmp_path / "events.jsonl"
    _write(metrics, _start(0, 4), *_steps(1, 7, 5))  # step 7 at 11 s
    _write(metrics, _start(5, 13), *_steps(6, 12, 15))  # step 12 at 21 s
    _write(metrics, _start(10, 23), *_steps(11, 11, 24), _start(10, 27), *_steps(11, 20, 28))
    _write(plans, _plan(1, 1, "start"), _plan(2, 11.5, "restart rank 1 in place"))
    _write(plans, _plan(3, 22, "restart rank 2"), _plan(4, 26, "swap rank 2", "swap rank 3", "swap rank 0"))
    _write(plans, _plan(5, 38, "end"))

    records = demo.records.Records()
    records.add_metrics(demo.records.Lines(metrics))
    records.add_plans(demo.records.Lines(plans))
    failures = [
        demo.report.Failure("rank", "rank 1 killed", STARTED + 9.5),
        demo.report.Failure("node", "node-1 lost", STARTED + 21.5),
    ]
    return SimpleNamespace(records=records, failures=failures)


def _outcome(demo: SimpleNamespace, exit_code: int = 0) -> Any:  # noqa: ANN401  the demo's class
    return demo.report.Outcome(
        exit_code=exit_code,
        started=STARTED,
        ended=STARTED + 39,
        peak_memory=3_000_000_000,
        memory_taken=4_000_000_000,
        peak_processes=9,
    )


def _report(demo: SimpleNamespace, run: SimpleNamespace, exit_code: int = 0, **changes: int) -> Any:  # noqa: ANN401
    options = {"planned": 2, "steps": 20, "world_size": 4} | changes
    return demo.report.make_report(run.records, run.failures, _outcome(demo, exit_code), **options)


def test_a_recovery_counts_from_the_last_complete_step_to_the_next_one(
    demo: SimpleNamespace, run: SimpleNamespace
) -> None:
    first, _ = _report(demo, run).recoveries

    assert (first.after_step, first.began, first.resumed_at, first.steps_lost) == (7, STARTED + 11, 5, 2)
    assert (first.decided, first.recovered) == (0.5, 4.0)
    assert (first.causes, first.decisions) == (("cause 2",), ("restart rank 1 in place",))


def test_a_failure_in_two_parts_is_over_with_the_second(demo: SimpleNamespace, run: SimpleNamespace) -> None:
    _, second = _report(demo, run).recoveries

    assert (second.after_step, second.began, second.resumed_at) == (12, STARTED + 21.5, 10)
    assert second.steps_lost == 2 + 1
    assert (second.decided, second.recovered) == (0.5, 6.5)
    assert second.decisions == ("restart rank 2", "swap rank 2", "swap rank 3", "swap rank 0")


def test_a_good_run_has_no_problems(demo: SimpleNamespace, run: SimpleNamespace) -> None:
    report = _report(demo, run)

    assert report.problems == ()
    assert (report.first_step_after, report.step_time, report.steps) == (5.0, 1.0, 20)
    assert (report.first_loss, report.final_loss) == (4.9, 3.0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"planned": 3}, "only 2 of 3 failures were caused"),
        ({"steps": 21}, "the last step completed was 20, expected 21"),
        ({"world_size": 5}, "there were 4 ranks for a while, expected 5"),
    ],
)
def test_what_is_missing_is_a_problem(
    demo: SimpleNamespace, run: SimpleNamespace, changes: dict[str, int], problem: str
) -> None:
    assert _report(demo, run, **changes).problems == (problem,)


def test_a_bad_exit_code_is_a_problem(demo: SimpleNamespace, run: SimpleNamespace) -> None:
    problems = _report(demo, run, exit_code=143).problems
    assert problems == ("the job ended with exit code 143, expected 0",)


def test_a_failure_that_nothing_came_back_from_is_a_problem(demo: SimpleNamespace, run: SimpleNamespace) -> None:
    run.failures.append(demo.report.Failure("gpu", "node-0/gpu-1 broken", STARTED + 38.5))
    report = _report(demo, run, planned=3)

    assert report.problems == ("never recovered: node-0/gpu-1 broken",)
    assert (report.recoveries[2].recovered, report.recoveries[2].steps_lost) == (None, None)


def test_a_run_without_a_single_step_has_a_report(demo: SimpleNamespace) -> None:
    empty = SimpleNamespace(records=demo.records.Records(), failures=[])
    report = _report(demo, empty, exit_code=1)

    assert report.problems[0] == "the job ended with exit code 1, expected 0"
    assert "first step      never" in "\n".join(demo.table.summary(report))


def test_the_table_says_what_happened(demo: SimpleNamespace, run: SimpleNamespace) -> None:
    out = io.StringIO()
    demo.table.show(_report(demo, run, planned=3), Console(file=out, width=120))
    lines = out.getvalue().splitlines()

    [row] = [line for line in lines if "rank 1 killed" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["7", "rank 1 killed", "restart rank 1 in place", "0.50 s", "4.0 s", "2"]
    assert any("and 2 more like these" in line for line in lines)
    assert "loss            4.90 -> 3.00 in 20 steps" in lines
    assert "demo: only 2 of 3 failures were caused" in lines


def test_the_report_is_json(demo: SimpleNamespace, run: SimpleNamespace) -> None:
    found = json.loads(json.dumps(_report(demo, run).as_json()))

    assert [one["failure"]["what"] for one in found["recoveries"]] == ["rank 1 killed", "node-1 lost"]
    assert found["outcome"]["exit_code"] == 0


_DRAW = """
import pathlib, sys
import plot, records, report
folder = pathlib.Path(sys.argv[1])
found = records.Records()
plot.draw(folder / "empty.png", found, (), 0.0, "nothing")
found.add_metrics(records.Lines(folder / "metrics.jsonl"))
failures = [report.Failure("rank", "rank 1", 1_000_009.5), report.Failure("gpu", "never seen again", 1_000_038.5)]
plot.draw(folder / "loss.png", found, [report.recovery(found, one, 1_000_039.0) for one in failures], 1e6, "a title")
"""


def test_the_picture_is_drawn(run: SimpleNamespace, tmp_path: Path) -> None:
    # In a process of its own, because matplotlib keeps its font files open.
    subprocess.run([sys.executable, "-c", _DRAW, str(tmp_path)], check=True, cwd=EXAMPLES / "demo")

    pictures = [(tmp_path / name).read_bytes() for name in ("empty.png", "loss.png")]
    assert all(picture.startswith(PNG) for picture in pictures)
    assert len(pictures[1]) > len(pictures[0])


def test_each_step_counts_once_and_what_was_lost_is_kept_apart(demo: SimpleNamespace, run: SimpleNamespace) -> None:
    counted, repeated = demo.plot.final_steps(run.records.steps)

    assert [step.step for step in counted] == list(range(1, 21))
    assert [step.step for step in repeated] == [6, 7, 11, 12, 11]


def test_a_line_is_read_when_it_is_whole_and_skipped_when_it_is_no_record(
    demo: SimpleNamespace, tmp_path: Path
) -> None:
    lines = demo.records.Lines(tmp_path / "file")
    assert list(lines.new()) == []

    (tmp_path / "file").write_text('{"a": 1}\nnonsense\n[2]\n{"b"')
    assert list(lines.new()) == [{"a": 1}]

    with (tmp_path / "file").open("a") as file:
        file.write(": 3}\n")
    assert list(lines.new()) == [{"b": 3}]
