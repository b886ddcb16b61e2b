"""What an agent makes of a process's end: when it was, on its own clock, and what the process said last."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from tlaunch.launcher.control.endings import LAST_LINES, LONGEST_OUTPUT, describe, not_started
from tlaunch.launcher.control.program import RankFiles
from tlaunch.launcher.process.messages import Exit

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\nValueError: x'


@pytest.fixture
def files(tmp_path: Path) -> RankFiles:
    found = RankFiles(tmp_path / "rank-0")
    found.folder.mkdir()
    return found


def error_file(files: RankFiles, age: float) -> Exit:
    """Return the end of a process whose error file is so old, by the clock of its file system."""
    path = Path(files.failure)
    path.write_text("{}")
    written = path.stat().st_mtime - age
    os.utime(path, (written, written))
    return Exit(1, None, "ValueError: x", TRACEBACK, str(path))


def test_a_failure_is_dated_by_its_error_file(files: RankFiles) -> None:
    found = describe(error_file(files, age=3.0), files, started=100.0, noticed=110.0)
    assert found.time == pytest.approx(107.0, abs=0.5)
    assert found.ran == pytest.approx(7.0, abs=0.5)
    assert found.host == socket.gethostname()


def test_what_the_wall_clock_shows_makes_no_difference(files: RankFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + 3600)
    assert describe(error_file(files, age=3.0), files, started=100.0, noticed=110.0).time == pytest.approx(107, abs=0.5)


@pytest.mark.parametrize(("age", "expected"), [(5000.0, 100.0), (-5000.0, 110.0)])
def test_a_clock_that_is_set_meanwhile_does_little_harm(files: RankFiles, age: float, expected: float) -> None:
    assert describe(error_file(files, age), files, started=100.0, noticed=110.0).time == expected


def test_a_process_that_was_killed_failed_when_that_was_noticed(files: RankFiles) -> None:
    said = Exit(signal=11, message="Signal 11 (SIGSEGV) received by PID 4711")
    found = describe(said, files, started=100.0, noticed=110.0)
    assert (found.time, found.ran, found.signal) == (110.0, 10.0, 11)
    assert found.message is None, "the signal says it all"
    assert found.output is None


def test_an_exception_that_could_not_be_written_down_is_told_all_the_same(files: RankFiles) -> None:
    """The disk is full: what is known of it came another way."""
    found = describe(Exit(1, message="OSError: [Errno 28] No space left on device"), files, started=0.0, noticed=1.0)
    assert (found.message, found.time) == ("OSError: [Errno 28] No space left on device", 1.0)
    unknown = Exit(1, message="To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html")
    assert describe(unknown, files, started=0.0, noticed=1.0).message is None


def test_the_last_lines_on_standard_error_without_the_frames_of_warnings(files: RankFiles) -> None:
    lines = [f"line {number}" for number in range(50)]
    Path(files.err).write_text("\n".join([*lines, "frame #0: c10::Error", "", "Fatal Python error: Aborted", ""]))
    Path(files.out).write_text("step 1\n")
    found = describe(Exit(signal=6), files, started=0.0, noticed=1.0)
    assert found.output is not None
    assert found.output.splitlines() == [*lines[-LAST_LINES + 1 :], "Fatal Python error: Aborted"]


def test_one_that_said_nothing_there_may_have_printed_something(files: RankFiles) -> None:
    Path(files.out).write_text("step 1\nstep 2\n")
    assert describe(Exit(code=7), files, started=0.0, noticed=1.0).output == "step 1\nstep 2"


@pytest.mark.parametrize("prefix", ["", "[rank1]: "])  # the latter is torch's, once there is a process group
def test_a_traceback_is_not_repeated(files: RankFiles, prefix: str) -> None:
    Path(files.err).write_text("a warning\n" + "".join(f"{prefix}{line}\n" for line in TRACEBACK.splitlines()))
    ended = error_file(files, age=0.0)
    found = describe(ended, files, started=0.0, noticed=1.0)
    assert (found.output, found.traceback, found.message) == ("a warning", TRACEBACK, "ValueError: x")


def test_a_flood_is_cut_and_a_missing_file_is_no_matter(files: RankFiles) -> None:
    Path(files.err).write_bytes(b"\xff" * 10_000_000)
    found = describe(Exit(signal=9), files, started=0.0, noticed=1.0)
    assert found.output == "\ufffd" * LONGEST_OUTPUT
    many = describe(Exit(signal=9), files, started=0.0, noticed=1.0, slots=80)
    assert many.output == "\ufffd" * (LONGEST_OUTPUT // 10), "more slots share the same report"
    Path(files.err).unlink()
    assert describe(Exit(signal=9), files, started=0.0, noticed=1.0).output is None
    assert describe(Exit(code=0), files, started=0.0, noticed=1.0).output is None


def test_one_that_could_not_be_started() -> None:
    found = not_started(OSError("no room"), 5.0)
    assert (found.message, found.time, found.ok) == ("could not be started: no room", 5.0, False)
