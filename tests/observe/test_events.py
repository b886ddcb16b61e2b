"""What becomes of ``events.jsonl`` when the place for it is taken or full."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest

from tests.observe.jobs import END, RESTART, START, SWAP
from tlaunch.launcher.observe.events import EventLog


def read_events(folder: Path) -> list[int]:
    return [json.loads(line)["generation"] for line in (folder / "events.jsonl").read_text().splitlines()]


def test_the_events_of_an_earlier_job_in_the_same_place_are_replaced(tmp_path: Path) -> None:
    for plans in ((START, RESTART, END), (START, SWAP)):
        with EventLog(tmp_path, pytest.fail) as log:
            for plan in plans:
                log.write(plan, 0)
        assert read_events(tmp_path) == [plan.generation for plan in plans]


def test_a_full_disk_ends_no_job(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    told: list[str] = []
    with EventLog(tmp_path, told.append) as log:
        log.write(START, 2)
        log.write(RESTART, 2)
    assert told == [f"{tmp_path}/events.jsonl cannot be written: No space left on device; the job goes on"]


def test_what_a_full_disk_has_kept_out_is_made_up_for(tmp_path: Path) -> None:
    told: list[str] = []
    with EventLog(tmp_path, told.append) as log:
        log.write(START, 2)
        size = (tmp_path / "events.jsonl").stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))  # so that a line is torn
        try:
            log.write(RESTART, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert (tmp_path / "events.jsonl").stat().st_size == size + 10
        log.write(SWAP, 1)
    assert read_events(tmp_path) == [1, 2, 3]
    assert len(told) == 1
