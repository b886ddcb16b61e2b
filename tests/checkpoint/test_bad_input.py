"""What users get wrong: one clear line each, nothing changed, and the next save and restore as if it had not been."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import tlaunch.checkpoint
from tests.checkpoint.test_checkpointer import WITHIN, numbers, same, train, training
from tlaunch.checkpoint.catalog import Keep, committed
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.dcp import Reader, Writer
from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.places import open_files
from tlaunch.checkpoint.values import from_json, to_json

# --- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["2", "two"])
def test_several_ranks_without_a_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(Unusable, match=rf"^WORLD_SIZE is {world} and there is no process group; expected torch"):
        Checkpointer(tmp_path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"every": 1.5}, "every: expected a whole number of at least 1, got 1.5"),
        ({"every": "5"}, "every: expected a whole number of at least 1, got '5'"),
        ({"keep": 3}, "keep: expected a Keep, such as Keep(last=3), got 3"),
        ({"mesh": [8]}, "mesh: expected names and sizes, such as {'dp': 8, 'tp': 4}, got [8]"),
        ({"mesh": {"dp": "8"}}, "mesh: dp: expected a whole number of at least 1, got '8'"),
    ],
)
def test_arguments_of_another_kind(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Unusable) as error:
        Checkpointer(tmp_path / "run", **options)
    assert str(error.value) == complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("last", [0, 1.5, "2", None])
def test_what_cannot_be_kept(last: Any) -> None:  # noqa: ANN401
    with pytest.raises(Unusable, match="keep: expected last >= 1 and every >= 0"):
        Keep(last=last)


@pytest.mark.parametrize("path", [None, 5, b"run", "a\0b"])
def test_what_is_no_path(path: Any) -> None:  # noqa: ANN401
    with pytest.raises(Unusable, match=r"^the path of the checkpoints: expected a path or a URL, got "):
        Checkpointer(path)


def test_paths_are_the_same_for_trainer_and_saver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may run in different folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given in ("run", "file://run", f"file://{tmp_path}/run", str(tmp_path / "x" / ".." / "run")):
        assert open_files(given).root == str(tmp_path / "run"), given
    assert open_files("~/run").root == str(tmp_path / "home" / "run")
    with pytest.raises(Unusable, match=r"^S3://bucket/run: no file system for it: "):
        open_files("S3://bucket/run")


@pytest.mark.parametrize("step", [-1, 1.5, "3", None, 10**15])
def test_steps_that_are_none_do_no_harm(tmp_path: Path, step: Any) -> None:  # noqa: ANN401
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(
            Unusable, match=r"^step: expected a (whole )?number (of at least 0|below 1000000000000000), "
        ):
            checkpointer.save(step, {"x": 1})
        with pytest.raises(Unusable, match=r"^step: expected a (whole )?number"):
            Writer(tmp_path, step=step)
        if step is not None:
            with pytest.raises(Unusable, match=r"^step: expected a (whole )?number"):
                checkpointer.restore({"x": 1}, step=step)
        assert checkpointer.save(torch.tensor(4), {"x": 1}).result(WITHIN)  # type: ignore[arg-type]
        assert checkpointer.restore({"x": 1}, step=4) == 4
    with pytest.raises(CheckpointError, match="this checkpointer is closed"):
        checkpointer.restore({"x": 1})


def test_a_saver_that_meets_with_nonsense_keeps_its_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step was lost with it, then another, and from then on nobody could be reached any more."""
    caplog.set_level(logging.CRITICAL, "tlaunch.checkpoint")
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
        with monkeypatch.context() as patch:
            patch.setattr("tlaunch.checkpoint.checkpointer.plan_to_bytes", lambda *_: b"nonsense")
            with pytest.raises(
                CheckpointError, match="step 2 may not have been saved: the saver process has ended again"
            ):
                checkpointer.save(2, {"x": 2}).result(WITHIN)
        assert checkpointer.save(3, {"x": 3}).result(WITHIN)


# --- paths that are no checkpoint ----------------------------------------------------------------------------------


def dcp_directory(path: Path) -> None:
    dcp_save({"model": nn.Linear(2, 2).state_dict()}, checkpoint_id=path, no_dist=True)


def huggingface_directory(path: Path) -> None:
    path.mkdir()
    save_file(nn.Linear(2, 2).state_dict(), path / "model.safetensors")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("make", [dcp_directory, huggingface_directory])
def test_another_programs_checkpoint_is_not_taken_for_none(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A training that begins anew beside a checkpoint, and says nothing of it, costs what the checkpoint has cost."""
    path = tmp_path / "run"
    make(path)
    model = nn.Linear(2, 2)
    with Checkpointer(path) as checkpointer:
        with pytest.raises(
            Unusable, match=r"run: holds a checkpoint of another format \(.*\) and none of ours; tlaunch"
        ):
            checkpointer.restore({"model": model})
        tlaunch.checkpoint.load(path, {"model": model})
        assert checkpointer.save(1, {"model": model}).result(WITHIN)
        assert checkpointer.restore({"model": model}) == 1


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_dcp_says_in_one_line_what_is_wrong_with_the_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dcp_directory(tmp_path / "native")
    with Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
    shutil.copytree(tmp_path / "run", tmp_path / "torn")
    (manifest,) = (tmp_path / "torn").glob("step-*/manifest.json")
    manifest.write_bytes(manifest.read_bytes()[:-3])
    for name, complaint in (
        ("none", "none: there is no checkpoint; expected the path that a job saves to"),
        ("native", "native: holds a checkpoint of another format (.metadata) and none of ours; "),
        ("torn", "manifest.json: "),
    ):
        state = {"x": 0}
        with pytest.raises(CheckpointException) as failed:
            dcp_load(state, storage_reader=Reader(tmp_path / name), no_dist=True)
        (error, _), *others = failed.value.failures.values()
        assert isinstance(error, CheckpointError)
        assert complaint in str(error)
        assert "\n" not in str(error)
        assert not others
        assert state == {"x": 0}
    assert "metadata is not found" not in caplog.text


def test_dcp_reads_the_checkpoint_of_the_coordinator(tmp_path: Path) -> None:
    """One that was committed while the ranks looked for the newest is read by all of them, or by none."""
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": torch.tensor(1.0)}).result(WITHIN)
        coordinator, other = Reader(tmp_path), Reader(tmp_path)
        coordinator.read_metadata()
        assert checkpointer.save(2, {"x": torch.tensor(2.0)}).result(WITHIN)
    for reader in (coordinator, other):
        reader.reset = lambda *_: None  # type: ignore[method-assign]
    metadata = other.read_metadata()
    assert metadata.planner_data
    other.prepare_global_plan = coordinator.prepare_global_plan  # type: ignore[method-assign]
    state = {"x": torch.tensor(0.0)}
    with pytest.warns(UserWarning, match="is disabled"):
        dcp_load(state, storage_reader=other, no_dist=True)
    assert state["x"] == 1.0


def test_dcp_leaves_our_names_alone(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="is disabled"),
        pytest.raises(CheckpointException, match=r"dcp\.paths: names that"),
    ):
        dcp_save({"dcp": {"paths": 1}}, storage_writer=Writer(tmp_path, step=1), no_dist=True)
    assert committed(LocalFiles(tmp_path)) == []


# --- states --------------------------------------------------------------------------------------------------------


def cyclic(kind: str) -> object:
    if kind == "mapping":
        mapping: dict[str, object] = {}
        mapping["again"] = mapping
        return mapping
    items: list[object] = [torch.ones(1)] if kind == "tensors" else [1]
    items += [items, items]
    return items


def deep(kind: str) -> object:
    tree: object = torch.ones(1) if "tensor" in kind else 1
    for _ in range(5000):
        tree = {"k": tree} if "mapping" in kind else [tree]
    return tree


def test_what_cannot_be_saved_is_named_and_does_no_harm(tmp_path: Path) -> None:
    endless = "nested more than 100 deep, or within itself"
    complaints: list[tuple[object, str]] = [
        *((cyclic(kind), endless) for kind in ("mapping", "values", "tensors")),
        *((deep(kind), endless) for kind in ("mapping", "list", "mapping of a tensor", "list of a tensor")),
        (10**5000, "a whole number of 16610 bits; expected at most 14000"),
        (torch.eye(2).to_sparse(), "expected a dense tensor with data, got torch.sparse_coo on cpu"),
        (torch.ones(2, device="meta"), "expected a dense tensor with data, got torch.strided on meta"),
        (lambda: 1, "a builtins.function has no representation"),
        ({1: "a", "1": "b"}, "two things in the state have this name"),
    ]
    with Checkpointer(tmp_path) as checkpointer:
        for step, (value, complaint) in enumerate(complaints):
            with pytest.raises(Unusable) as error:
                checkpointer.save(step, {"sampler": {"thing": value}})
            said = str(error.value)
            assert said.startswith("sampler.thing")
            assert complaint in said
            assert len(said) < 250
            assert "\n" not in said
        assert checkpointer.save(len(complaints), {"x": 1}).result(WITHIN)


def test_what_cannot_be_filled_is_named_before_anything_changes(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"a": torch.ones(4), "thing": torch.ones(2, 2)}).result(WITHIN)
        for thing, complaint in (
            (torch.zeros(1, 1).expand(2, 2), "elements share memory, as in expand"),
            (torch.zeros(2, 2).to_sparse(), "expected a dense tensor with data, got torch.sparse_coo on cpu"),
            (torch.zeros(2, 2, device="meta"), "expected a dense tensor with data, got torch.strided on meta"),
        ):
            state = {"a": torch.zeros(4), "thing": thing}
            with pytest.raises(Unusable, match=f"^thing: {complaint}"):
                checkpointer.restore(state)
            assert not state["a"].any()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_named(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(Unusable, match="thing: expected a dense tensor, got a ne"),
    ):
        checkpointer.save(1, {"thing": nested})


def test_numbers_up_to_the_limit() -> None:
    for number in (2**14_000 - 1, -(2**14_000 - 1)):
        assert from_json(to_json(number, "x"), "x") == number


@pytest.mark.parametrize("state", [nn.Linear(2, 2), [1], None, "text"])
def test_a_state_without_names(tmp_path: Path, state: Any) -> None:  # noqa: ANN401
    complaint = rf"^the state: expected a mapping from names, .*, got a {type(state).__name__}$"
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
        for call in (lambda: checkpointer.save(2, state), lambda: checkpointer.restore(state)):
            with pytest.raises(Unusable, match=complaint):
                call()
        with pytest.raises(Unusable, match=complaint):
            tlaunch.checkpoint.load(tmp_path, state)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_numbers_of_views_that_conjugate(tmp_path: Path) -> None:
    """Their memory holds other numbers than they do."""
    saved = {"c": torch.tensor([1 + 2j, 3 - 4j]).conj(), "n": torch.tensor([1 + 2j, 3 + 4j]).conj().imag}
    with Checkpointer(tmp_path / "own") as checkpointer:
        assert checkpointer.save(1, saved).result(WITHIN)
    dcp_save(dict(saved), storage_writer=Writer(tmp_path / "ours", step=1), no_dist=True)
    dcp_save(dict(saved), checkpoint_id=tmp_path / "native", no_dist=True)
    for name in ("own", "ours", "native"):
        state = {"c": torch.zeros(2, dtype=torch.complex64), "n": torch.zeros(2)}
        tlaunch.checkpoint.load(tmp_path / name, state)
        assert state["c"].tolist() == [1 - 2j, 3 + 4j], name
        assert state["n"].tolist() == [-2.0, -4.0], name


# --- optimizers that have not made a step --------------------------------------------------------------------------


def test_an_optimizer_that_has_not_made_a_step_stays_so(tmp_path: Path) -> None:
    """torch gives it a state, of a step that does not count."""
    torch.manual_seed(1)
    saved = training()
    torch.manual_seed(1)
    untouched = training()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, saved).result(WITHIN)
        assert not saved["optimizer"].state
        back = training()
        for missing in ({"more": 1}, {"model": nn.Linear(3, 3)}):
            before = numbers(back)
            for read in (checkpointer.restore, functools.partial(tlaunch.checkpoint.load, tmp_path)):
                with pytest.raises(Unusable):
                    read({**back, **missing})
                assert not back["optimizer"].state
            assert same(numbers(back), before)
        assert checkpointer.restore(back) == 1
    for state in (saved, untouched, back):
        torch.manual_seed(0)
        train(state, 3)
    assert same(numbers(saved), numbers(untouched))
    assert same(numbers(back), numbers(untouched))


def test_a_path_that_may_not_be_written_to_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
    before = sorted(tmp_path.iterdir())

    def refuse(self: LocalFiles, *args: object) -> None:
        raise PermissionError(13, os.strerror(13))

    for name in ("make", "write", "create", "remove"):
        monkeypatch.setattr(LocalFiles, name, refuse)
    with pytest.raises(CheckpointError, match="taking the path over failed: Permission denied"):
        Checkpointer(tmp_path)
    state = {"x": 0}
    assert tlaunch.checkpoint.load(tmp_path, state) == 1
    assert state == {"x": 1}
    assert sorted(tmp_path.iterdir()) == before


def test_a_path_that_can_only_be_read_from_now_on_is_restored_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LocalFiles, *args: object) -> None:
        raise OSError(30, os.strerror(30))

    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": 1}).result(WITHIN)
        with monkeypatch.context() as patch:
            for name in ("make", "write", "create", "remove"):
                patch.setattr(LocalFiles, name, refuse)
            state = {"x": 0}
            assert checkpointer.restore(state) == 1
            assert state == {"x": 1}
            said = (
                r"step 2 is not saved after going back to step 1: .*taking the path over failed: Read-only file system"
            )
            with pytest.raises(CheckpointError, match=said):
                checkpointer.save(2, {"x": 2}).result(WITHIN)
        assert checkpointer.restore(state) == 1
        assert checkpointer.save(2, {"x": 2}).result(WITHIN)
        assert checkpointer.restore(state) == 2
