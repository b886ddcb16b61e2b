"""The faults that a job must survive, or end well of, each tied to the tests that prove it.

A test says what it proves, in itself or in one of its parameters::

    @fault("worker", "killed (SIGKILL)", noticed="at once: the agent holds a pidfd", decision="restart in place",
           lost="steps since the script's last checkpoint")
    def test_...

    @pytest.mark.parametrize("how", [pytest.param("raise", marks=fault("worker", "exception", ...)), ...])

``make docs`` (``python -m tests.e2e.faults``) writes ``docs/failures.md`` from that. The file is never edited by hand:
what stands in it comes from here and from the tests. Where it conflicts in a rebase, resolve the tests, run
``make docs`` and add the result. ``REQUIRED`` is the list of rows that there have to be.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tlaunch.launcher.control.timing import deadlines

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "failures.md"

REQUIRED: dict[str, tuple[str, ...]] = {
    "worker": (
        "exception",
        "sys.exit(n)",
        "killed (SIGKILL)",
        "segfault",
        "out-of-memory kill",
        "stopped (SIGSTOP)",
        "hang in a collective",
        "hang, in Python or in C",
        "exits 0 early while others go on",
        "forks children of its own",
        "floods stdout",
        "fills the disk",
    ),
    "agent": ("killed alone", "killed during a save", "stopped", "restarted"),
    "zygote": ("killed",),
    "checkpoint": ("saver killed", "rank killed in the middle of a save"),
    "node": ("lost all at once", "slow", "clock moved by an hour", "cut off from etcd and its peers"),
    "controller": ("killed", "stopped and woken", "killed in each phase of a plan"),
    "etcd": (
        "one member killed",
        "one member stopped",
        "leader moved",
        "all down for 30 s",
        "all down for longer than the lease",
        "gone for good",
        "data lost for good",
        "quota full",
        "slow by 500 ms",
    ),
    "launcher": ("Ctrl-C", "SIGTERM", "SIGHUP", "killed (SIGKILL)", "terminal closed"),
    "job": (
        "two failures at once",
        "a failure in each phase of a recovery",
        "more failures than spares",
        "a lost node comes back after a shrink",
        "a flapping slot",
        "a bad slot that kills whoever lands on it",
        "the same exception at the same place on every try",
    ),
}
"""The faults by component, in the order of the page. A further row needs a line here."""

INTRODUCTION = """\
<!-- Written by `make docs` from the tests in tests/e2e. Do not edit: see tests/e2e/faults.py. -->

# Failures, and what becomes of them

Every failure has an outcome: the job goes on within a bounded time, or it ends with one reason. Each row is proven by
an end-to-end test with real processes, a real etcd and real process groups. *Lost* is what the job has to do again or
do without; "steps since the checkpoint" are those of the script's own last checkpoint.
"""


ROW = ("fault", "noticed", "decision", "lost", "test")

DEADLINES = """\
Everything that agents, the controller and the launcher wait for has a deadline and a next step. They are the settings
below; `launcher/control/timing.py` has them, and refuses at the start values that do not fit each other. Three waits
have no end of their own, on purpose. A node with nothing to do waits for the next plan, as long as the store can be
reached. A standby waits for its agent's word, as long as the agent lives. And a node whose ranks run goes on trying to
reach the store: an outage ends nothing. How long ranks may stand still only their user knows: `--hang-timeout`
says so, and without it a hang ends with the timeout of the process group.
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the page: what goes wrong, how and when it is noticed, what is done about it, what it costs."""

    component: str
    fault: str
    noticed: str
    decision: str
    lost: str


def fault(component: str, fault: str, *, noticed: str, decision: str, lost: str) -> pytest.MarkDecorator:
    """Say that a test proves a row of ``docs/failures.md``. Tests that give the same five texts share the row."""
    if fault not in REQUIRED.get(component, ()):
        raise ValueError(f"{component!r}, {fault!r}: no such row; REQUIRED in {__file__} has the list")
    return pytest.mark.fault(Fault(component, fault, noticed, decision, lost))


def proofs() -> dict[Fault, list[str]]:
    """Return the rows that have a test, each with links to its tests, in the order of ``REQUIRED``."""
    found: dict[Fault, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"{__package__}.{path.stem}")
        for name, row in _marked(module):
            link = f"[{name.removeprefix('test_').replace('_', ' ')}](../tests/e2e/{path.name})"
            links = found.setdefault(row, [])
            if link not in links:
                links.append(link)
    order = [(component, fault) for component, faults in REQUIRED.items() for fault in faults]
    return dict(sorted(found.items(), key=lambda item: order.index((item[0].component, item[0].fault))))


def _marked(module: ModuleType) -> Iterator[tuple[str, Fault]]:
    for name, function in vars(module).items():
        for mark in getattr(function, "pytestmark", ()) if name.startswith("test_") else ():
            marks: list[pytest.Mark | pytest.MarkDecorator] = [mark]
            if mark.name == "parametrize":
                marks = [inner for case in mark.args[1] for inner in getattr(case, "marks", ())]
            yield from ((name, row) for inner in marks if inner.name == "fault" for row in inner.args)


def page() -> str:
    """Return what ``docs/failures.md`` has to contain."""
    rows = proofs()
    parts = [INTRODUCTION]
    for component, faults in REQUIRED.items():
        lines = []
        for name in faults:
            proven = [row for row in rows if (row.component, row.fault) == (component, name)]
            lines += [(row.fault, row.noticed, row.decision, row.lost, ", ".join(rows[row])) for row in proven]
            if not proven:
                lines.append((name, "", "", "", "none yet"))
        parts.append(f"## {component.capitalize()}\n\n{_table(ROW, lines)}")
    times = [(one.name, f"{one.seconds:g} s", one.wait, one.then) for one in deadlines()]
    parts.append(f"## Deadlines\n\n{DEADLINES}\n{_table(('name', 'default', 'what is waited for', 'then'), times)}")
    return "\n".join(parts)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, ("---",) * len(heads), *lines))


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
