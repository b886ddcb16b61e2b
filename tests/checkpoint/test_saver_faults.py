"""A saver whose system calls fail, or that is killed in one of them: each phase of a save, with the real process."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from tests.checkpoint.strace import joined, strace
from tests.checkpoint.test_checkpointer import WITHIN, saver_of
from tests.checkpoint.whole import leftovers
from tlaunch.checkpoint.catalog import Keep, committed, manifest_of
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.errors import CheckpointError
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.reading import verify

SHARD, PART, MANIFEST = "rank-00000.safetensors", "rank-00000.json", "manifest.json"


def state(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((1000,), float(step))}


def stands(folder: Path, *steps: int) -> None:
    """Check that these steps are committed, and whole."""
    files = LocalFiles(folder)
    found = committed(files)
    assert [address.step for address in found] == list(steps)
    for address in found:
        verify(files, address, manifest_of(files, address))


class Aim:
    """Finds the threads of a saver that write what, by watching them save step 0."""

    def __init__(self, checkpointer: Checkpointer, log: Path) -> None:
        self._pid = saver_of(checkpointer)
        with joined(self._pid, "-f", f"-o{log}", "-etrace=rename"):
            assert checkpointer.save(0, state(0)).result(WITHIN)
        found = re.findall(r'^(\d+) +rename\(.*/([^/"]*)"\)', log.read_text(), re.MULTILINE)
        assert [name for _, name in found] == [SHARD, PART, MANIFEST]
        self._threads = {name: int(thread) for thread, name in found}

    def at(self, call: str, name: str, what: str) -> AbstractContextManager[None]:
        """Have the call fail with which this file is written: a thread renames its shard first, its part second."""
        which = 2 if (call, name) == ("rename", PART) else 1
        return joined(self._threads[name], f"-einject={call}:{what}:when={which}+", f"-etrace={call}", "-o/dev/null")


@pytest.mark.slow
def test_whatever_fails_is_told_in_one_line_and_the_next_step_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    faults = [
        ("mkdir", "ENOSPC", SHARD, "writing a shard failed: no space is left; checkpoints that stood before still do"),
        ("mkdir", "EROFS", SHARD, "writing a shard failed: Read-only file system"),
        ("write", "ENOSPC", SHARD, "writing a shard failed: no space is left"),
        ("write", "EDQUOT", SHARD, "writing a shard failed: no space is left"),
        ("write", "EIO", SHARD, "writing a shard failed: Input/output error"),
        ("fsync", "EIO", SHARD, "writing a shard failed: Input/output error"),
        ("rename", "EIO", SHARD, "writing a shard failed: Input/output error"),
        ("rename", "EIO", PART, "writing a rank's part failed: Input/output error"),
        ("write", "ENOSPC", MANIFEST, "committing failed: no space is left"),
        ("fsync", "EIO", MANIFEST, "committing failed: Input/output error"),
        ("rename", "EIO", MANIFEST, "committing failed: Input/output error"),
    ]
    with Checkpointer(folder, keep=Keep(9)) as checkpointer:
        assert checkpointer.save(99, state(99)).result(WITHIN)
        aim = Aim(checkpointer, tmp_path / "log")
        for step, (call, error, name, said) in enumerate(faults, 1):
            with aim.at(call, name, f"error={error}"):
                future = checkpointer.save(step, state(step))
                with pytest.raises(CheckpointError) as raised:
                    future.result(WITHIN)
            assert f"{folder}/step-{step:09d}.g00001/{name}: {said}" in str(raised.value), (call, error)
            assert "\n" not in str(raised.value)
            stands(folder, 0, 99)
            shard = folder / f"step-{step:09d}.g00001" / SHARD
            assert shard.exists() == (name == MANIFEST), "what is of no use takes no room"
        with aim.at("unlink", MANIFEST, "error=EIO"):  # a part that cannot be removed does no harm
            assert checkpointer.save(90, state(90)).result(WITHIN)
        assert checkpointer.save(91, state(91)).result(WITHIN)
    stands(folder, 0, 90, 91, 99)
    with Checkpointer(folder):
        assert leftovers(LocalFiles(folder)) == []


@pytest.mark.parametrize(("error", "said"), [("ENOSPC", "no space is left"), ("EIO", "Input/output error")])
def test_a_large_shard_that_cannot_be_written(tmp_path: Path, error: str, said: str) -> None:
    large = {"w": torch.ones(3 << 20)}  # of several chunks, which are written by threads of their own
    calls = "write,pwrite64"
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, large).result(WITHIN)
        with joined(saver_of(checkpointer), "-f", f"-einject={calls}:error={error}", f"-etrace={calls}", "-o/dev/null"):
            future = checkpointer.save(2, large)
            with pytest.raises(CheckpointError, match=rf"{SHARD}: writing a shard failed: {said}"):
                future.result(WITHIN)
        stands(tmp_path, 1)
        assert checkpointer.save(3, large).result(WITHIN)
        stands(tmp_path, 1, 3)
    assert not list(tmp_path.rglob(".draft-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("write", SHARD),
        ("fsync", SHARD),
        ("rename", SHARD),
        ("rename", PART),
        ("write", MANIFEST),
        ("rename", MANIFEST),
        ("unlink", MANIFEST),
    ],
)
def test_killed_in_a_phase_of_a_save(tmp_path: Path, call: str, name: str) -> None:
    folder = tmp_path / "ck"
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.save(1, state(1)).result(WITHIN)
        with Aim(checkpointer, tmp_path / "log").at(call, name, "signal=KILL"):
            assert checkpointer.save(2, state(2)).result(WITHIN), "by the next saver, which is given the same memory"
        stands(folder, 0, 1, 2)
        assert checkpointer.save(3, state(3)).result(WITHIN)
    with Checkpointer(folder) as checkpointer:
        assert leftovers(LocalFiles(folder)) == []
        stands(folder, 1, 2, 3)
        found = state(0)
        assert checkpointer.restore(found) == 3
        assert found["w"].tolist() == state(3)["w"].tolist()


def test_a_disk_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, state(1)).result(WITHIN)
    verifying = [sys.executable, "-m", "tlaunch", "checkpoint", "verify", str(tmp_path)]
    trouble = strace(
        "-einject=preadv,preadv2,pread64:error=EIO", "-etrace=preadv,preadv2,pread64", log=Path("/dev/null")
    )
    shard = f"{tmp_path}/step-000000001.g00001/{SHARD}"
    done = subprocess.run([*trouble, f"-P{shard}", *verifying], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert f"{shard}: reading bytes 0 to " in done.stdout
    assert done.stdout.endswith("failed: Input/output error\n")


def test_a_path_that_can_only_be_read(tmp_path: Path) -> None:
    script = str(Path(__file__).parent / "scripts" / "saves.py")
    trouble = strace(
        "-einject=openat:error=EROFS", "-etrace=openat", f"-P{tmp_path}/generation-00000001.json", log=Path("/dev/null")
    )
    done = subprocess.run(
        [*trouble, sys.executable, script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1].endswith(f"{tmp_path}: taking the path over failed: Read-only file system")
