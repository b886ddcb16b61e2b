from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.observe.jobs import BROKEN, END, FAILURE, JOB, KEYS, LOST, RESTART, START, SWAP, fill
from tlaunch.launcher.core.events import NodesReady, RankFailed
from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.observe.events import EventLog
from tlaunch.launcher.observe.follow import Follower
from tlaunch.launcher.observe.jobview import JobView, from_listing
from tlaunch.launcher.observe.plain import PlainView
from tlaunch.launcher.observe.report import brief, row
from tlaunch.launcher.observe.view import View
from tlaunch.launcher.store.memory import MemoryStore


class Screen:
    """A plain view and what it wrote."""

    def __init__(self, folder: Path) -> None:
        self._files = [(folder / name).open("wb+", buffering=0) for name in ("out", "err")]
        out, err = (file.fileno() for file in self._files)
        self.view: View = PlainView(JOB, out, err, lambda: "12:00:00")

    def said(self) -> tuple[list[str], list[str]]:
        """Return the lines on standard output and standard error, when the view is closed."""
        self.view.close(None)
        for file in self._files:
            file.seek(0)
        out, err = (file.read().decode().splitlines() for file in self._files)
        for file in self._files:
            file.close()
        return out, err


@pytest.fixture
def screen(tmp_path: Path) -> Screen:
    return Screen(tmp_path)


async def look(*plans: Plan) -> JobView:
    store = MemoryStore()
    await fill(store, *plans)
    return from_listing(JOB, (await store.list(KEYS.root)).items)


def test_lines_of_ranks_keep_their_stream(screen: Screen) -> None:
    screen.view.worker_line(5, "out", "step 1")
    screen.view.worker_line(12, "err", "a warning")
    assert screen.said() == (["[5] step 1"], ["[12] a warning"])


def test_a_story_in_lines(screen: Screen) -> None:
    assert END.result is not None
    screen.view.notice("waiting for 4 nodes")
    screen.view.plan(START, None)
    screen.view.plan(RESTART, START)
    screen.view.plan(SWAP, RESTART)
    screen.view.plan(END, SWAP)
    screen.view.close(END.result)
    screen.view.close(END.result)
    out, err = screen.said()
    assert out == []
    assert err == [
        "12:00:00 tlaunch: waiting for 4 nodes",
        f"12:00:00 tlaunch: generation 1: {NodesReady()} -> start 6 ranks",
        f"12:00:00 tlaunch: generation 2: {FAILURE} -> restart rank 1 on node-0/gpu-1",
        "12:00:00 tlaunch:   the slot is healthy",
        "12:00:00 tlaunch:   rank 1 had run for 12 s on host gb03; its last lines:",
        *(f"12:00:00 tlaunch:   | step {step}" for step in range(3, 8)),
        f"12:00:00 tlaunch: generation 3: {BROKEN} -> swap rank 4 to node-3/gpu-0",
        "12:00:00 tlaunch:   same rack",
        "12:00:00 tlaunch: what happened:",
        f"12:00:00 tlaunch:   generation 2: {FAILURE} -> restart rank 1 on node-0/gpu-1",
        f"12:00:00 tlaunch:   generation 3: {BROKEN} -> swap rank 4 to node-3/gpu-0",
        f"12:00:00 tlaunch: job gpt-a1 ended with exit code 1 after 3 generations: {END.result.reason}",
        "12:00:00 tlaunch: the first failure:",
        "12:00:00 tlaunch: Traceback (most recent call last):",
        "12:00:00 tlaunch: ValueError: first",
    ]


def test_a_job_to_which_nothing_happened_ends_in_one_line(screen: Screen) -> None:
    screen.view.plan(START, None)
    screen.view.close(Result(0, "every rank has finished"))
    assert screen.said()[1][1:] == ["12:00:00 tlaunch: job gpt-a1 succeeded: every rank has finished"]


def test_an_end_without_a_result_says_nothing(screen: Screen) -> None:
    screen.view.close(None)
    screen.view.close(Result(0, "too late"))
    assert screen.said() == ([], [])


def test_many_causes_are_told_in_few_words() -> None:
    failures = tuple(RankFailed(seat.rank, seat.slot, FAILURE.exit) for seat in START.seats)
    lost = Plan(2, START.mesh, START.seats, events=failures, decisions=())
    assert row(lost).cause == f"{failures[0]}; {failures[1]}; {failures[2]}; and 3 more"
    assert row(lost).decision == "no change"
    assert brief(["a", "b", "c"]) == "a; b; c"


# --- following a job -----------------------------------------------------------------------------------------------


async def test_every_plan_is_told_once_and_in_order(screen: Screen, tmp_path: Path) -> None:
    with EventLog(tmp_path, pytest.fail) as log:
        follower = Follower(screen.view, log)
        follower.look(await look())
        follower.look(await look(START))
        follower.look(await look(START))
        follower.look(await look(START, RESTART, SWAP))
        follower.look(await look(START, RESTART, SWAP, END))
    generations = [line.split()[3] for line in screen.said()[1] if "tlaunch: generation" in line]
    assert generations == ["1:", "2:", "3:"]
    written = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [entry["generation"] for entry in written] == [1, 2, 3, 4]
    assert [entry["spares"] for entry in written] == [2, 2, 1, 0]


async def test_an_entry_of_the_events_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1700000000.12345)
    with EventLog(tmp_path, pytest.fail) as log:
        log.write(END, 1)
        lines = (tmp_path / "events.jsonl").read_text().splitlines()  # there before the log is closed
    assert [json.loads(line) for line in lines] == [
        {
            "time": 1700000000.123,
            "generation": 4,
            "causes": [str(LOST)],
            "decisions": ["stop"],
            "reasons": ["no spare is left"],
            "first_failure": None,
            "world_size": 0,
            "spares": 1,
            "restart_count": 3,
            "result": {"code": 1, "reason": "4 ranks are fewer than --min-world 6"},
        }
    ]
