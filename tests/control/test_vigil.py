"""Which ranks count as getting further, on real processes and by a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from tlaunch.launcher.control.program import RankFiles
from tlaunch.launcher.control.slots import Running
from tlaunch.launcher.control.vigil import ASKED, LOOKS, Sample, Vigil, sample
from tlaunch.launcher.core.assign import AssignedSeat
from tlaunch.launcher.core.hang import Hung
from tlaunch.launcher.process.messages import STACK_SIGNAL

STILL = Sample(at=0.0, printed=0, cpu=1.0, waits=10, answers=True)


@pytest.mark.parametrize(
    ("after", "further"),
    [
        (STILL, False),
        (replace(STILL, printed=1), True),
        (replace(STILL, cpu=1.2, waits=20), True),
        (replace(STILL, cpu=1.01, waits=20), False),  # of 10 s: it looks for news now and then
        (replace(STILL, cpu=11.0), False),  # an endless loop, or a wait that spins
        (replace(STILL, cpu=11.0, answers=False), True),  # as far as anybody knows
        (replace(STILL, waits=1000), False),
        (replace(STILL, waits=11), False),  # it was asked for its stack
    ],
)
def test_a_main_thread_that_computes_and_waits_gets_further(after: Sample, further: bool) -> None:
    assert replace(after, at=10.0).follows(STILL) == further


ASLEEP = """
import faulthandler, sys
stack = open(sys.argv[1], "a")
faulthandler.register(int(sys.argv[2]), stack, all_threads=False)
def one():
    print("one", flush=True)
    input()
def two():
    print("two", flush=True)
    input()
one()
two()
"""


@dataclass
class Rank:
    """A rank as the vigil sees it; its process does what it is told by its standard input."""

    process: subprocess.Popen[str]
    files: RankFiles
    seat: AssignedSeat = field(default_factory=lambda: AssignedSeat(3, 1, 1, 1))
    started: float = 100.0
    pid: int = 0
    stopped: bool = False

    @property
    def of(self) -> Running:
        return cast("Running", self)

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


class Job:
    """A vigil over one process."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.now = rank.started
        self.told: list[Mapping[int, Hung]] = []
        self.running = [rank.of]
        self.vigil = Vigil(lambda: self.running, self.told.append, timeout=8.0, slots=8)

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1.0
            self.vigil.look(self.now)

    def answered(self) -> None:
        """Wait for the answer to the question of the last look."""
        deadline = time.monotonic() + 30
        while not Path(self.rank.files.stack).read_text().endswith("<module>\n"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def files(tmp_path: Path) -> RankFiles:
    found = RankFiles(tmp_path)
    for path in (found.out, found.err, found.stack):
        Path(path).touch()
    return found


@pytest.fixture
def job(files: RankFiles) -> Iterator[Job]:
    command = [sys.executable, "-c", ASLEEP, files.stack, str(int(STACK_SIGNAL))]
    with (
        Path(files.out).open("a") as out,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, text=True) as process,
    ):
        rank = Rank(process, files)
        rank.process.signal_alone = process.send_signal  # type: ignore[attr-defined]
        rank.process.stopped = False  # type: ignore[attr-defined]
        until_printed(files, "one")
        yield Job(rank)
        process.kill()


def until_printed(files: RankFiles, word: str) -> None:
    deadline = time.monotonic() + 30
    while word not in Path(files.out).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_rank_that_stands_still_is_told_of_once_with_where_it_stands(job: Job) -> None:
    job.look(1 + LOOKS - 1)
    job.answered()
    assert job.told == []
    job.look(3)
    (told,) = job.told
    assert list(told) == [3]
    assert (told[3].since, told[3].ran) == (101.0, 1.0), "the first look"
    assert told[3].place == "<string>:7 in one"
    assert told[3].waits is None
    assert str(told[3].stack).endswith('  File "<string>", line 11, in <module>\n  File "<string>", line 7, in one\n')
    assert told[3].output == "one"
    job.rank.goes_on()
    until_printed(job.rank.files, "two")
    job.look()
    assert job.told[1:] == [{}]


def test_a_stack_that_changes_is_a_sign_of_life(job: Job) -> None:
    out = Path(job.rank.files.out)
    job.look(1 + ASKED + 1)
    job.answered()
    job.rank.goes_on()
    until_printed(job.rank.files, "two")
    out.write_text("one\n")  # as if it had printed nothing, so that its stack alone tells
    job.look()
    job.answered()
    job.look(LOOKS)
    assert job.told == []
    job.answered()
    job.look()
    assert job.told[0][3].place == "<string>:10 in two"


def test_what_happens_in_a_long_step_adds_up(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that always computes, is always found in the same place, and waits once between two looks."""
    found = STILL

    def one(pid: int, files: RankFiles, now: float) -> Sample:
        nonlocal found
        found = replace(found, at=now, cpu=found.cpu + 0.9, waits=found.waits + 1)
        return found

    monkeypatch.setattr("tlaunch.launcher.control.vigil.sample", one)
    job.look(5 * LOOKS)
    assert job.told == []


def test_nobody_is_asked_who_is_at_work_or_was_stopped_or_is_new(job: Job) -> None:
    for _ in range(3 * LOOKS):
        with Path(job.rank.files.out).open("a") as out:
            out.write("x\n")
        job.look()
    job.rank.process.stopped = True  # type: ignore[attr-defined]
    job.look(2 * LOOKS)
    job.rank.process.stopped = False  # type: ignore[attr-defined]
    job.look(ASKED - 1)
    assert Path(job.rank.files.stack).read_text() == ""
    assert job.told == []


def test_a_process_without_an_answer_is_not_asked_which_would_end_it(files: RankFiles) -> None:
    with subprocess.Popen(["sleep", "600"], text=True) as process:
        process.stopped = False  # type: ignore[attr-defined]
        job = Job(Rank(process, files))
        found = sample(process.pid, files, 0.0)
        assert found is not None
        assert not found.answers
        job.look(1 + LOOKS)
        assert process.poll() is None
        assert job.told == [{3: replace(job.told[0][3], place=None, waits=None, stack=None, output=None)}]
        process.kill()
    job.running.clear()
    job.look()
    assert job.told[1:] == [{}], "it has ended"


async def test_a_node_looks_several_times_within_the_timeout() -> None:
    looks = 0

    def running() -> tuple[Running, ...]:
        nonlocal looks
        looks += 1
        return ()

    vigil = Vigil(running, lambda _: None, timeout=0.2, slots=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await vigil.run()
    assert looks >= 2
