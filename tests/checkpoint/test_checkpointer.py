from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoint.ranks import SCRIPTS
from tlaunch.checkpoint.catalog import Keep, committed
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.errors import CheckpointError, Damaged, Superseded, Unusable
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.home import start_saver

WITHIN = 60.0


def training() -> dict[str, Any]:
    """Make a small training state."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "epoch": 0, "history": {"loss": [1.5]}}


def train(state: dict[str, Any], steps: int) -> None:
    """Make some steps on random data."""
    for _ in range(steps):
        state["optimizer"].zero_grad()
        state["model"](torch.randn(6, 4)).square().mean().backward()
        state["optimizer"].step()
        state["scheduler"].step()
        state["epoch"] += 1


def numbers(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return every number of the model and its optimizer."""
    found = {name: value.clone() for name, value in state["model"].state_dict().items()}
    for index, values in state["optimizer"].state_dict()["state"].items():
        found |= {f"{index}.{name}": value.clone() for name, value in values.items()}
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = training()
    with Checkpointer(tmp_path / "ck") as checkpointer:
        train(state, 3)
        future = checkpointer.save(3, state)
        train(state, 3)  # overlaps with the copy
        assert future.result(WITHIN)
        straight = numbers(state)
    torch.manual_seed(99)
    again = training()
    with Checkpointer(tmp_path / "ck") as checkpointer:
        assert checkpointer.restore(again) == 3
        assert again["epoch"] == 3
        assert again["history"] == {"loss": [1.5]}
        train(again, 3)
    assert same(numbers(again), straight)
    assert again["scheduler"].state_dict() == state["scheduler"].state_dict()


def test_every_generator_of_random_numbers_goes_on(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002 - the old one has a state

    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
        drawn = draw()
        assert checkpointer.restore({"x": 1}) == 1
        assert draw() == drawn
    (manifest,) = tmp_path.glob("step-*/manifest.json")
    assert manifest.stat().st_size < 4000, "there may be ten thousand ranks, and each of them reads it"


def test_nothing_to_restore(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(training()) is None


def test_only_due_steps_are_saved_and_only_some_kept(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, every=2, keep=Keep(last=1, every=6)) as checkpointer:
        saved = [step for step in range(1, 11) if checkpointer.save(step, {"x": step}).result(WITHIN)]
    assert saved == [2, 4, 6, 8, 10]
    assert [address.step for address in committed(LocalFiles(tmp_path))] == [6, 10]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.bfloat16, 1.5),
        (torch.float8_e4m3fn, 1.5),
        (torch.float64, 1.5),
        (torch.bool, True),
        (torch.complex64, 1j),
    ],
)
def test_types_and_shapes(tmp_path: Path, dtype: torch.dtype, value: complex) -> None:
    state: dict[str, Any] = {
        "scalar": torch.tensor(value, dtype=dtype),
        "empty": torch.zeros((0, 3), dtype=dtype),
        "turned": torch.tensor([[value] * 3] * 2, dtype=dtype).T,
        "list": [torch.tensor([value], dtype=dtype), 7],
    }
    back: dict[str, Any] = {
        "scalar": torch.zeros((), dtype=dtype),
        "empty": torch.zeros((0, 3), dtype=dtype),
        "turned": torch.zeros((3, 2), dtype=dtype),
        "list": [torch.zeros(1, dtype=dtype), 0],
    }
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, state).result(WITHIN)
        assert checkpointer.restore(back) == 1
    for name in ("scalar", "turned"):
        assert torch.equal(back[name].to(torch.complex64), state[name].to(torch.complex64))
    assert back["list"][1] == 7


# --- what cannot be saved or restored --------------------------------------------------------------------------------


def test_what_cannot_be_represented_is_named_and_nothing_is_saved(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"a": {"b": object()}}, "a.b: a builtins.object has no representation"),
        ({"nets": [nn.Linear(1, 1)]}, r"nets\[0\]: a torch.nn.* or this object at the top of the state"),
        ({"w": torch.zeros(2, dtype=torch.complex128)}, "w: torch.complex128 has no type in safetensors"),
        ({"w": torch.eye(2).to_sparse()}, "w: expected a dense tensor"),
        ({"a": {"b": 1}, "a.b": 2}, "a.b: two things in the state have this name"),
        ({"ranks": 1}, "ranks: this name is taken"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())},
            "optimizer: .* expected beside it one module that has",
        ),
    ]
    with Checkpointer(tmp_path) as checkpointer:
        for state, complaint in cases:
            with pytest.raises(Unusable, match=complaint):
                checkpointer.save(1, state)
        checkpointer.wait()
    assert committed(LocalFiles(tmp_path)) == []


def test_a_state_that_differs_is_described_and_left_as_it_was(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        saved = {"w": torch.ones(2, 3), "v": torch.ones(2), "lr": 0.5, "old": 1}
        assert checkpointer.save(1, saved).result(WITHIN)
        other: dict[str, Any] = {
            "w": torch.zeros(3, 2),
            "v": torch.zeros(2, dtype=torch.float16),
            "lr": torch.zeros(()),
            "new": 2,
        }
        with pytest.raises(Unusable, match="missing in the checkpoint: new; not in the state: old"):
            checkpointer.restore(other)
        with pytest.raises(Unusable) as error:
            checkpointer.restore(other, strict=False)
        assert "a tensor here, a value there: lr" in str(error.value)
        assert "w is F32 [3, 2] here and F32 [2, 3] there" in str(error.value)
        assert "v is F16 [2] here and F32 [2] there" in str(error.value)
        assert not other["w"].any()
        some: dict[str, Any] = {"w": torch.zeros(2, 3), "new": 2}
        assert checkpointer.restore(some, strict=False) == 1
        assert some["w"].all()
        assert some["new"] == 2
        with pytest.raises(Unusable, match=r"no checkpoint of step 5; there are 1"):
            checkpointer.restore(some, step=5)


def test_a_damaged_shard_changes_nothing(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"a": torch.ones(1000), "b": torch.ones(3_000_000)}).result(WITHIN)
        (shard,) = tmp_path.glob("step-*/*.safetensors")
        data = bytearray(shard.read_bytes())
        data[-5] ^= 1
        shard.write_bytes(data)
        state = {"a": torch.zeros(1000), "b": torch.zeros(3_000_000)}
        with pytest.raises(Damaged, match=rf"{shard.name}: bytes .* have changed"):
            checkpointer.restore(state)
        assert not state["a"].any()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"every": 0}, "every: expected a whole number of at least 1"),
        ({"busy": "later"}, "busy: expected 'wait' or 'skip'"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Unusable, match=complaint):
        Checkpointer(tmp_path, **options)


def test_a_url_of_an_unknown_kind() -> None:
    with pytest.raises(Unusable, match=r"^xyz://bucket/a: no file system for it: .*xyz"):
        Checkpointer("xyz://bucket/a")


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "ck"):
        with pytest.raises(Unusable, match=f"^{path}: a file is in the way; expected a folder"):
            Checkpointer(path)


# --- failures ------------------------------------------------------------------------------------------------------


def test_whoever_comes_later_takes_the_path_over(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as older, Checkpointer(tmp_path) as newer:
        assert (older.generation, newer.generation) == (1, 2)
        with pytest.raises(Superseded, match=r"generation 2 .* has taken over from generation 1"):
            older.save(5, {"x": 1}).result(WITHIN)
        assert newer.save(4, {"x": 2}).result(WITHIN)
        state = {"x": 0}
        assert older.restore(state) == 4
        assert state["x"] == 2


def saver_of(checkpointer: Checkpointer) -> int:
    """Return the pid of the saver."""
    home = checkpointer._home
    assert home is not None
    return home.pid


def test_a_saver_that_dies_is_replaced_and_loses_nothing(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
        first = saver_of(checkpointer)
        os.kill(first, signal.SIGSTOP)
        pending = checkpointer.save(2, {"x": 2})
        while 2 not in checkpointer._saving._orders:
            time.sleep(0.001)
        os.kill(first, signal.SIGKILL)
        assert pending.result(WITHIN), "its memory is still there, and the next one has got it"
        assert saver_of(checkpointer) != first
        assert checkpointer.save(3, {"x": 3}).result(WITHIN)
    assert [address.step for address in committed(LocalFiles(tmp_path))] == [1, 2, 3]


def test_a_step_that_kills_every_saver_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(listener: socket.socket, *options: str) -> subprocess.Popen[bytes]:
        if len(started) == 2:
            return start_saver(listener, *options)
        fd = listener.fileno()
        started.append(subprocess.Popen([sys.executable, str(SCRIPTS / "poisoned.py"), str(fd)], pass_fds=[fd]))
        return started[-1]

    monkeypatch.setattr("tlaunch.checkpoint.home.start_saver", start)
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(CheckpointError, match=r"step 1 may not have been saved: the saver process has ended again"):
            checkpointer.save(1, {"x": 1}).result(WITHIN)
        assert checkpointer.save(2, {"x": 2}).result(WITHIN)
    assert "step 1 may not have been saved" in caplog.text


def test_a_saver_that_stays_stopped_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tlaunch.checkpoint.saving.STALLED", 2.0)
    monkeypatch.setattr("tlaunch.checkpoint.home.CLOSING", 0.2)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
        os.kill(saver_of(checkpointer), signal.SIGSTOP)
        futures = [checkpointer.save(step, {"x": step}) for step in (2, 3, 4)]  # the last waits for a buffer
        checkpointer.wait()
        for future in futures:
            with pytest.raises(CheckpointError, match="the saver process has said nothing for 2 s: nothing is saved"):
                future.result(0)
        with pytest.raises(CheckpointError, match="nothing is saved any more"):
            checkpointer.save(5, {"x": 5}).result(0)
    assert "is killed" in caplog.text
    assert [address.step for address in committed(LocalFiles(tmp_path))] == [1]


def test_without_a_saver_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TLAUNCH_SAVER", str(tmp_path / "nobody"))
    with Checkpointer(tmp_path / "ck") as checkpointer:
        for step in (1, 2):
            with pytest.raises(CheckpointError, match=rf"step {step} .*the saver at .*nobody cannot be reached"):
                checkpointer.save(step, {"x": 1}).result(WITHIN)
    assert "step 1 is not saved" in caplog.text, "also for those who do not look at the future"


def test_a_step_that_is_committed_is_not_written_again(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": torch.ones(3)}).result(WITHIN)
        assert checkpointer.save(1, {"x": torch.zeros(3)}).result(WITHIN)
        state = {"x": torch.zeros(3)}
        assert checkpointer.restore(state) == 1
        assert state["x"].all()
        assert [path.name for path in tmp_path.glob("step-*/*.json")] == ["manifest.json"]


def test_what_was_captured_is_committed_though_the_trainer_is_killed(tmp_path: Path) -> None:
    trainer = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "dies.py"), str(tmp_path / "ck")], stdout=subprocess.PIPE, text=True
    )
    with trainer:
        assert trainer.stdout is not None
        saver = int(trainer.stdout.readline())
        assert trainer.wait(WITHIN) == -signal.SIGKILL
    deadline = time.monotonic() + WITHIN
    while Path(f"/proc/{saver}").exists():  # not our child: nothing else tells of its end
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [address.step for address in committed(LocalFiles(tmp_path / "ck"))] == [1, 2]
    state = {"w": torch.zeros(1 << 20)}
    with Checkpointer(tmp_path / "ck") as checkpointer:
        assert checkpointer.restore(state) == 2
    assert (state["w"] == 2).all()
