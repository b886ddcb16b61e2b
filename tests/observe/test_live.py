from __future__ import annotations

import io
import json
import threading
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from tests.observe.jobs import BROKEN, END, FAILURE, JOB, KEYS, MACHINE, RESTART, START, SWAP, fill
from tlaunch.launcher.core.plan import Plan, Result, Seat
from tlaunch.launcher.observe import live
from tlaunch.launcher.observe.board import board
from tlaunch.launcher.observe.jobview import JobView, from_listing
from tlaunch.launcher.observe.live import LiveView
from tlaunch.launcher.observe.status import document, show
from tlaunch.launcher.observe.view import View
from tlaunch.launcher.store.memory import MemoryStore
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node

LEGEND = "number = rank, + = spare, bad = not used, lost = node gone, ... = not there yet"


async def look(*plans: Plan, without: tuple[str, ...] = (), asked: Machine | None = None) -> JobView:
    store = MemoryStore()
    await fill(store, *plans, without=without)
    return from_listing(JOB, (await store.list(KEYS.root)).items, asked)


def terminal(width: int = 100, height: int = 40) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, highlight=False
    )


def text(picture: RenderableType, width: int = 100) -> list[str]:
    console = Console(width=width, height=40, color_system=None)
    with console.capture() as capture:
        console.print(picture)
    return [line.rstrip() for line in capture.get().splitlines()]


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_the_board_shows_every_slot() -> None:
    job = await look(START, SWAP, without=("node-1",))
    assert text(board(job, 100, 40, "00:01:02")) == [
        "job gpt-a1  00:01:02  generation 3  6 ranks (dp=3,tp=2)  1 spare  1 bad  2 lost  controller node-0",
        "rack-0 | 2 x 2 = 4 slots | NVLink domain nvl-0",
        "  node-0    0    1    node-1 lost lost",
        "rack-1 | 2 x 2 = 4 slots | NVLink domain nvl-1",
        "  node-2  bad    5    node-3    4    +",
        LEGEND,
    ]


async def test_the_board_before_the_start() -> None:
    asked = Machine((*MACHINE.nodes, Node("extra", 2)))
    job = await look(without=("node-0", "node-1"), asked=asked)
    assert text(board(job, 60, 40), 60) == [
        "job gpt-a1  waiting for nodes, 2 of 5 are there  controller…",
        "rack-0 | 2 x 2 = 4 slots | NVLink domain nvl-0",
        "  node-0  ...  ...    node-1  ...  ...",
        "rack-1 | 2 x 2 = 4 slots | NVLink domain nvl-1",
        "  node-2    -    -    node-3    -    -",
        "no rack | 1 x 2 = 2 slots | no NVLink between nodes",
        "  extra   ...  ...",
        LEGEND[:59] + "…",
    ]


def huge(racks: int) -> JobView:
    nodes = [Node(f"node-{rack}-{i}", 4, rack=f"rack-{rack}") for rack in range(racks) for i in range(18)]
    machine = Machine(tuple(nodes))
    seats = tuple(Seat(rank, slot, 1) for rank, slot in enumerate(machine.slots[:-8]))
    plan = Plan(1, Mesh.flat(len(seats)), seats)
    return JobView(JOB, None, machine, frozenset(machine.by_name) - {"node-0-1"}, None, (plan,))


def test_a_rack_of_eighteen_fits_on_a_small_terminal() -> None:
    lines = text(board(huge(1), 80, 24), 80)
    assert len(lines) <= 24
    assert "node-0-17" in "\n".join(lines)


def test_a_machine_that_is_too_large_is_counted_by_rack() -> None:
    lines = text(board(huge(8), 100, 38))
    assert lines[1] == "  rack-0 | 18 x 4 = 72 slots | no NVLink between nodes |  68 rank  4 lost"
    assert lines[8] == "  rack-7 | 18 x 4 = 72 slots | no NVLink between nodes |  64 rank  8 spare"
    assert len(lines) == 10


def test_racks_that_do_not_fit_are_left_out_but_counted() -> None:
    lines = text(board(huge(50), 100, 20))
    assert len(lines) == 19
    assert lines[-2] == "  ... and 34 racks more"


# --- the live view -------------------------------------------------------------------------------------------------


async def test_the_picture_fills_one_terminal() -> None:
    view = LiveView(JOB, terminal(100, 40), lambda: "12:00:00")
    job = await look(START, RESTART, SWAP)
    view.snapshot(job)
    for plan, previous in ((START, None), (RESTART, START), (SWAP, RESTART)):
        view.plan(plan, previous)
    lines = text(view.picture())
    view.close(None)
    assert lines[0].startswith("job gpt-a1  00:00:0")
    assert lines[5] == LEGEND
    assert lines[6].startswith("12:00:00  1  ")
    assert lines[6].endswith("start 6 ranks")
    table = " ".join(lines[6:])
    assert "restart rank 1 on node-0/gpu-1" in table
    assert "swap rank 4 to node-3/gpu-0" in table
    assert len(lines) < 40


async def test_only_the_latest_happenings_are_shown() -> None:
    view = LiveView(JOB, terminal(), lambda: "12:00:00")
    view.snapshot(await look(START))
    for number in range(1, 50):
        view.plan(replace(RESTART, generation=number), None)
    lines = text(view.picture())
    view.close(None)
    assert [line.split()[1] for line in lines if line.startswith("12:00:00")] == ["45", "46", "47", "48", "49"]


async def test_what_ranks_print_scrolls_above(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    view: View = LiveView(JOB, console, lambda: "12:00:00")
    view.notice("starting etcd")
    view.snapshot(await look(START))
    view.worker_line(3, "out", "loss \x1b[31m2.5\x1b[0m [bold]not markup[/bold]")
    view.worker_line(4, "err", "a warning")
    view.plan(END, START)
    view.close(END.result)
    shown = written(console)
    assert "12:00:00 tlaunch: starting etcd\n" in shown
    assert "[3] loss 2.5 [bold]not markup[/bold]\n[4] a warning\n" in shown
    assert shown.index("[4] a warning") < shown.index("job gpt-a1 ended with exit code 1: ")
    assert shown.endswith("the first failure:\nTraceback (most recent call last):\nValueError: first\n")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is back


async def test_a_failure_is_told_above_with_the_last_words_of_its_rank() -> None:
    console = terminal()
    view = LiveView(JOB, console, lambda: "12:00:00")
    view.snapshot(await look(START, RESTART))
    view.plan(START, None)
    view.plan(RESTART, START)
    view.close(None)
    said = [line.strip() for line in written(console).splitlines()]
    assert "rank 1 had run for 12 s on host gb03; its last lines:" in said
    assert "| step 7" in said
    assert not any("rack-1 keeps 2 spares" in line for line in said), "that is the first plan's business"


async def test_drawing_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PERIOD", 0.01)
    console = terminal()
    view = LiveView(JOB, console)
    drawn = threading.Event()
    picture = view.picture

    def seen() -> RenderableType:
        drawn.set()
        return picture()

    monkeypatch.setattr(view._live, "_get_renderable", seen)
    view.snapshot(await look(START))
    drawn.clear()
    assert drawn.wait(10)
    view.close(None)
    assert not view._thread.is_alive()


async def test_a_job_that_never_showed_anything_leaves_the_terminal_alone() -> None:
    console = terminal()
    view = LiveView(JOB, console)
    view.close(None)
    view.snapshot(await look(START))
    view.close(Result(0, "too late"))
    assert written(console) == ""


async def test_lines_that_a_stalled_terminal_does_not_take_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_LINES", 3)
    console = terminal()
    view = LiveView(JOB, console)
    for number in range(10):
        view.worker_line(0, "out", f"line {number}")
    view.close(None)
    assert written(console) == "[0] line 7\n[0] line 8\n[0] line 9\n"


# --- tlaunch status ------------------------------------------------------------------------------------------------


async def test_status_for_people() -> None:
    console = terminal()
    show(await look(START, RESTART, END, without=("node-1",)), console)
    lines = written(console).splitlines()
    assert lines[0].rstrip() == "job gpt-a1  ended with code 1  controller node-0"
    assert [line.split("  ")[0] for line in lines if line.startswith("generation")] == [
        f"generation {number}" for number in (1, 2, 4)
    ]
    assert lines[-1] == "job gpt-a1 ended with exit code 1 after 2 generations: 4 ranks are fewer than --min-world 6"


async def test_status_for_programs() -> None:
    found = json.loads(json.dumps(document(await look(START, SWAP, without=("node-1",)))))
    assert {key: found[key] for key in found if key not in ("nodes", "history")} == {
        "job": "gpt-a1",
        "script": "train.py",
        "generation": 3,
        "world_size": 6,
        "mesh": "dp=3,tp=2",
        "spares": 1,
        "restarts": 1,
        "controller": "node-0",
        "result": None,
    }
    assert [node["alive"] for node in found["nodes"]] == [True, False, True, True]
    assert found["nodes"][2] == {
        "name": "node-2",
        "pod": None,
        "rack": "rack-1",
        "domain": "nvl-1",
        "alive": True,
        "slots": [
            {"role": "bad", "rank": None, "reason": "XID 79"},
            {"role": "rank", "rank": 5, "reason": None},
        ],
    }
    assert found["history"][1] == {
        "generation": 3,
        "causes": [str(BROKEN)],
        "decisions": ["swap rank 4 to node-3/gpu-0"],
        "reasons": ["same rack"],
    }
    assert str(FAILURE) not in json.dumps(found)
