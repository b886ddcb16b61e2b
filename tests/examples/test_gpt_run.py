"""examples/gpt/train.py as a user runs it: alone, under torchrun, killed, and resumed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.examples.conftest import EXAMPLES

SCRIPT = str(EXAMPLES / "gpt" / "train.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
# A batch that two ranks cannot share evenly.
OPTIONS = ["--batch", "3", "--checkpoint-every", "10"]

pytestmark = pytest.mark.slow

Record = dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process has trained 30 steps, with its records in ``metrics``."""
    folder = tmp_path_factory.mktemp("undisturbed")
    _train(folder, "--steps", "30", "--metrics", "metrics")
    return folder


def test_a_run_that_was_interrupted_and_resumed_equals_an_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    options = ["--checkpoint", "saved", "--metrics", "metrics"]
    _train(tmp_path, *options, "--steps", "17")
    printed = _train(tmp_path, *options, "--steps", "24")

    assert printed.startswith("resumed at step 17, world size 1, restart 0\nstep 20: loss")
    resumed, expected = _losses(_load(tmp_path)), _losses(_load(undisturbed))
    assert resumed == {step: expected[step] for step in range(1, 25)}
    assert [record["step"] for record in _load(tmp_path) if record["event"] == "start"] == [0, 17]


def test_a_finished_run_without_an_id_is_not_resumed_by_the_next_one(undisturbed: Path) -> None:
    assert list(undisturbed.glob("gpt-checkpoint/none/step-00000030.pt"))
    assert _train(undisturbed, "--steps", "1").startswith("starting, world size 1, restart 0\nstep 1: loss 5.")


def test_a_rank_killed_under_torchrun_is_recovered_and_the_loss_curve_is_that_of_one_process(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it torch 2.13 gives a restarted group the store of the dead one, with its stale addresses.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    command = [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "1", SCRIPT, *OPTIONS, "--steps", "200"]
    with _followed(command, tmp_path) as (torchrun, records):
        before = _until(records, step=15)
        _worker(torchrun.pid, rank=1).kill()
        after = _until(records, step=200)
        assert torchrun.wait() == 0

    start = next(record for record in after if record["event"] == "start")
    assert (start["restart_count"], start["world_size"]) == (1, 2)
    assert start["step"] >= 10
    assert start["step"] % 10 == 0
    expected = _losses(_load(undisturbed))
    curve = _losses(before + after)
    assert [curve[step] for step in expected] == pytest.approx(list(expected.values()), abs=1e-4)
    assert sorted(curve) == list(range(1, 201))
    assert curve[1] > 5
    assert curve[200] < 3.5


def _train(folder: Path, *options: str) -> str:
    """Run the script as one process in ``folder`` and return what it printed."""
    command = [sys.executable, SCRIPT, *OPTIONS, *options]
    return subprocess.run(command, check=True, cwd=folder, stdout=subprocess.PIPE, text=True).stdout


def _load(folder: Path) -> list[Record]:
    return [json.loads(line) for line in (folder / "metrics").read_text().splitlines()]


def _losses(records: list[Record]) -> dict[int, float]:
    """The loss of each step; of a repeated step, the last one."""
    return {record["step"]: record["loss"] for record in records if record["event"] == "step"}


@contextmanager
def _followed(command: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[Record]]]:
    """Run a command with its metrics going through a pipe, and hand over each record at the moment it is written."""
    fifo = folder / "metrics"
    os.mkfifo(fifo)
    # Opened for writing too: the script opens and closes it for each line, and that must not look like the end.
    pipe = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
    with subprocess.Popen([*command, "--metrics", str(fifo)], cwd=folder) as process:
        ended = os.pidfd_open(process.pid)
        try:
            yield process, _records(pipe, ended)
        finally:
            process.terminate()
            os.close(ended)
            os.close(pipe)


def _records(pipe: int, ended: int) -> Iterator[Record]:
    pending = b""
    while True:
        ready, _, _ = select.select([pipe, ended], [], [])
        if pipe not in ready:
            return
        *lines, pending = (pending + os.read(pipe, 65536)).split(b"\n")
        yield from map(json.loads, lines)


def _until(records: Iterator[Record], step: int) -> list[Record]:
    """The records up to and with the one of ``step``."""
    found = []
    for record in records:
        found.append(record)
        if record["event"] == "step" and record["step"] == step:
            return found
    pytest.fail(f"the run ended before step {step}")


def _worker(launcher: int, rank: int) -> psutil.Process:
    children = psutil.Process(launcher).children(recursive=True)
    [worker] = [child for child in children if child.environ().get("RANK") == str(rank)]
    return worker
