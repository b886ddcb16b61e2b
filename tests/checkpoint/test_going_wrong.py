"""A run that meets with trouble: its checkpoints stand, its model is whole, and one line says what is wrong."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.checkpoint.test_checkpointer import WITHIN, numbers, same, saver_of, train, training
from tlaunch.checkpoint import random_state
from tlaunch.checkpoint.catalog import committed
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.errors import CheckpointError
from tlaunch.checkpoint.files import LocalFiles


def test_an_object_that_refuses_its_state_leaves_model_and_optimizer_as_they_were(tmp_path: Path) -> None:
    class Picky:
        """Takes on no other state than its own."""

        def __init__(self, value: int) -> None:
            self.value = value

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            if state["value"] != self.value:
                raise ValueError("not mine")

    with Checkpointer(tmp_path) as checkpointer:
        saved = {**training(), "picky": Picky(1)}
        train(saved, 1)
        assert checkpointer.save(1, saved).result(WITHIN)
        other = {**training(), "picky": Picky(2)}
        train(other, 2)
        before = numbers(other)
        with pytest.raises(ValueError, match="not mine"):
            checkpointer.restore(other)
        assert same(numbers(other), before)
        new = training()
        with pytest.raises(ValueError, match="not mine"):
            checkpointer.restore({**new, "picky": Picky(2)})
        assert not new["optimizer"].state


def test_going_back_saves_the_same_steps_anew(tmp_path: Path) -> None:
    state = {"x": 1}
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, state).result(WITHIN)
        assert checkpointer.save(2, {"x": 2}).result(WITHIN)
        assert checkpointer.save(2, {"x": 3}).result(WITHIN)  # what stands is not written again
        assert checkpointer.restore(state, step=2) == 2
        assert state["x"] == 2
        assert checkpointer.restore(state, step=1) == 1
        assert checkpointer.save(2, {"x": 4}).result(WITHIN)
        assert checkpointer.restore(state) == 2
        assert state["x"] == 4
    assert [(each.step, each.generation) for each in committed(LocalFiles(tmp_path))] == [(1, 1), (2, 1), (2, 2)]


def test_a_step_that_is_being_saved_costs_no_buffer(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
        os.kill(saver_of(checkpointer), signal.SIGSTOP)
        pending = checkpointer.save(2, {"x": 2})
        for _ in range(3):
            with pytest.raises(CheckpointError, match="step 2 is being saved already"):
                checkpointer.save(2, {"x": 2})
        second = checkpointer.save(3, {"x": 3})
        os.kill(saver_of(checkpointer), signal.SIGCONT)
        assert pending.result(WITHIN)
        assert second.result(WITHIN)


def test_a_future_cannot_be_cancelled(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        first = checkpointer.save(1, {"x": 1})
        assert not first.cancel()
        assert first.result(WITHIN)
        assert checkpointer.save(2, {"x": 2}).result(WITHIN)


def test_no_descriptor_to_reach_the_saver_ends_neither_the_training_nor_later_saves(tmp_path: Path) -> None:
    """One that is out of descriptors raises ``OSError`` wherever one is made."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    random_state.capture()  # imports what it needs
    with Checkpointer(tmp_path) as checkpointer:
        for step, first in ((1, True), (2, False)):
            pending = Future[bool]()
            if not first:  # the saver is lost, instead of not there yet
                os.kill(saver_of(checkpointer), signal.SIGSTOP)
                pending = checkpointer.save(step, {"x": 1})
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            try:
                if first:
                    pending = checkpointer.save(step, {"x": 1})
                else:
                    os.kill(saver_of(checkpointer), signal.SIGKILL)
                with pytest.raises(CheckpointError, match=rf"step {step} .*Too many open files"):
                    pending.result(WITHIN)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert checkpointer.save(step + 10, {"x": 1}).result(WITHIN)


def test_a_saver_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(listener: socket.socket, *options: str) -> NoReturn:
        raise BlockingIOError(11, f"no process for {listener.fileno()} {options}")

    with Checkpointer(tmp_path) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr("tlaunch.checkpoint.home.start_saver", refuse)
            for step in (1, 2):
                with pytest.raises(CheckpointError, match="cannot be reached"):
                    checkpointer.save(step, {"x": step}).result(WITHIN)
        assert checkpointer.save(3, {"x": 3}).result(WITHIN)
    assert caplog.text.count("no saver can be started: [Errno 11] no process") == 2


def test_when_too_many_savers_have_died_no_more_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def fail(listener: socket.socket, *options: str) -> subprocess.Popen[bytes]:
        del listener, options
        started.append(subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(3)"]))
        return started[-1]

    monkeypatch.setattr("tlaunch.checkpoint.home.start_saver", fail)
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            with pytest.raises(CheckpointError, match="cannot be reached"):
                checkpointer.save(step, {"x": step}).result(WITHIN)
    assert len(started) == 5
    assert "5 saver processes have died: nothing is saved any more" in caplog.text


@pytest.mark.parametrize("error", [ValueError("in the training"), SystemExit(3)])
def test_an_error_in_the_training_does_not_wait_for_what_is_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("tlaunch.checkpoint.saving.STALLED", 2.0)

    def fail() -> None:
        with checkpointer:
            assert checkpointer.save(1, {"x": 1}).result(WITHIN)
            os.kill(saver_of(checkpointer), signal.SIGSTOP)
            pending.append(checkpointer.save(2, {"x": 2}))
            raise error

    pending: list[Future[bool]] = []
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(type(error)):
        fail()
    with pytest.raises(CheckpointError, match="has ended with an error, and left it to the saver process"):
        pending[0].result(0)
    home = checkpointer._home
    assert home is not None
    os.kill(home.pid, signal.SIGCONT)
    assert home._keeper is not None
    home._keeper.join(WITHIN)
    assert [address.step for address in committed(LocalFiles(tmp_path))] == [1, 2]


def test_an_ordinary_end_waits_for_what_is_being_saved(tmp_path: Path) -> None:
    def end() -> None:
        with Checkpointer(tmp_path) as checkpointer:
            pending.append(checkpointer.save(1, {"x": 1}))
            raise SystemExit(0)

    pending: list[Future[bool]] = []
    with pytest.raises(SystemExit):
        end()
    assert pending[0].result(0)


def test_no_room_for_a_snapshot_is_one_line_and_training_goes_on(tmp_path: Path) -> None:
    size = 64 << 20
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": torch.ones(4)}).result(WITHIN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, limits[1]))  # shared memory is a file, too
        try:
            with pytest.raises(CheckpointError, match=r"a snapshot needs \d+ bytes of shared memory: File too large"):
                checkpointer.save(2, {"x": torch.ones(size // 4)}).result(WITHIN)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert checkpointer.save(3, {"x": torch.ones(4)}).result(WITHIN)
    assert [address.step for address in committed(LocalFiles(tmp_path))] == [1, 3]
