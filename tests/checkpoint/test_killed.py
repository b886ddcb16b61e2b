"""A writer that is killed at any system call that changes the disk loses nothing, and leaves nothing that stays."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.checkpoint.ranks import SCRIPTS
from tests.checkpoint.strace import strace
from tests.checkpoint.whole import check_all, leftovers
from tlaunch.checkpoint.catalog import committed
from tlaunch.checkpoint.files import LocalFiles

CALLS = ("mkdir", "write", "pwrite64", "fsync", "fdatasync", "rename", "link", "unlink", "unlinkat", "rmdir")


def saves(folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    """Be a run that saves one checkpoint more and keeps the newest two; ``before`` goes before its command."""
    command = [*before, sys.executable, "-B", str(SCRIPTS / "saves.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def killed(saved: Path, call: str, number: int) -> bool:
    """Kill a run at its ``number``-th call. Returns whether it had told of a commit before."""
    folder = saved.with_name(f"{call}-{number}")
    shutil.copytree(saved, folder)
    done = saves(
        folder, *strace(f"-einject={call}:signal=KILL:when={number}", f"-etrace={call}", log=Path("/dev/null"))
    )
    assert done.returncode == -9, (call, number, done.returncode, done.stderr)
    files = LocalFiles(folder)
    found = [address.step for address in committed(files)]
    assert found in ([10, 20], [10, 20, 30], [20, 30]), f"killed at {call} {number}"
    assert 30 in found or not done.stdout, f"killed at {call} {number}: what was told to be committed is not there"
    check_all(files)
    again = saves(folder)  # the next run cleans up, and saves
    assert again.returncode == 0, again.stderr
    assert [address.step for address in committed(files)] == [found[-1], found[-1] + 10]
    check_all(files)
    assert leftovers(files) == []
    return bool(done.stdout)


@pytest.mark.slow
def test_killed_at_every_call_that_changes_the_disk(tmp_path: Path) -> None:
    saved, whole, log = tmp_path / "saved", tmp_path / "whole", tmp_path / "log"
    assert [saves(saved).stdout, saves(saved).stdout] == ["10\n", "20\n"]
    shutil.copytree(saved, whole)
    assert saves(whole, *strace(f"-etrace={','.join(CALLS)}", log=log)).stdout == "30\n"
    counts = Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
    assert {"mkdir", "fsync", "rename", "unlink", "rmdir"} <= counts.keys()
    points = [(call, number + 1) for call in counts for number in range(counts[call])]
    assert len(points) > 40
    with ThreadPoolExecutor(2) as pool:
        told = set(pool.map(lambda point: killed(saved, *point), points))
    assert told == {False, True}, "no kill came before the commit, or none after"
