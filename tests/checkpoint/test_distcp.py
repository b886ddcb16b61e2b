"""Directories that torch.distributed.checkpoint has written: loaded, and imported."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save

from tests.checkpoint.exchange import everything
from tests.checkpoint.ranks import run_ranks
from tests.checkpoint.sharded import expected
from tlaunch.checkpoint import CheckpointError, Damaged, Unusable, distcp, load, source
from tlaunch.checkpoint.dcp import Reader
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.opening import open_source
from tlaunch.launcher.cli.main import exit_code


def native(folder: Path, state: dict[str, Any]) -> Path:
    """Save a state in torch's own format, alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no process group
        save(state, checkpoint_id=folder)
    return folder


@pytest.mark.slow
def test_saved_by_two_ranks_loaded_by_three_and_imported(tmp_path: Path) -> None:
    folder, run = tmp_path / "native", tmp_path / "run"
    run_ranks("native.py", (2, ("save", str(folder))), (3, ("load", str(folder))), folder=tmp_path)
    assert exit_code(["checkpoint", "import", str(folder), str(run)]) == 0
    assert exit_code(["checkpoint", "diff", str(folder), str(run)]) == 0
    found = open_source(run)
    assert found.step == 7
    tensors = everything(found)
    assert tensors.pop("across").equal(expected("across", torch.Size((4, 3))).t())
    assert tensors.pop("model.3.num_batches_tracked") == 1
    parameters = [f"{layer}.{kind}" for layer in (0, 2, 3) for kind in ("weight", "bias")]
    for name in parameters:
        assert tensors.pop(f"optimizer.state.{name}.step") == 1
    assert len(tensors) == len(parameters) * 3 + len(["running_mean", "running_var", "columns"])
    for name, tensor in tensors.items():
        assert tensor.equal(expected(name, tensor.shape)), name
    state = {"step": 0, "columns": torch.zeros(6, 8)}
    with pytest.warns(UserWarning, match="process group|single process"):
        dcp_load(state, storage_reader=Reader(run))  # by the paths of torch's planner, which came along
    assert state["step"] == 7
    assert isinstance(state["columns"], torch.Tensor)
    assert state["columns"].equal(expected("columns", torch.Size((6, 8))))


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    folder = native(tmp_path / "native", {"w": torch.ones(3), "more": 1})
    state = {"w": torch.zeros(3)}
    with pytest.raises(Unusable, match="not in the state: more"):
        load(folder, state)
    assert not state["w"].any()
    with pytest.raises(Unusable, match=r"is one checkpoint; a step \(3\) can be asked for"):
        load(folder, state, step=3)
    assert load(folder, state, strict=False) is None
    assert state["w"].all()


class Hostile:
    """Runs a program when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_something_is_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = native(tmp_path / "native", {"w": torch.ones(3)})
    (folder / ".metadata").write_bytes(pickle.dumps({"w": Hostile(tmp_path / "marker")}))
    assert exit_code(["checkpoint", "import", str(folder), str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tlaunch: {folder}/.metadata: its pickle asks for posix.system, which is not loaded")
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "data", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps(b"x" * 99)[:-20], b"\x80\x04ctorch\nSize\n)R."]
)
def test_metadata_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(data)
    with pytest.raises(Unusable, match=r"\.metadata: expected ") as error:
        open_source(tmp_path)
    assert "\n" not in str(error.value)


def test_sizes_that_are_none_are_not_printed_in_full(tmp_path: Path) -> None:
    folder = native(tmp_path / "native", {"w": torch.ones(3)})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    bomb: list[object] = []
    for _ in range(24):
        bomb = [bomb, bomb]  # a few bytes each, and twice as many in print
    metadata.state_dict_metadata["w"].size = bomb
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(Unusable, match=r"\.metadata: w: expected sizes, found (\[+\.\.\.\],? ?)+") as error:
        open_source(folder)
    assert len(str(error.value)) < 1000


def test_values_without_a_representation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {
        "w": torch.ones(3),
        "arguments": argparse.Namespace(lr=1),
        "hostile": Hostile(tmp_path / "marker"),
        "epoch": 3,
    }
    folder = native(tmp_path / "native", state)
    words = ["checkpoint", "import", str(folder), str(tmp_path / "run")]
    assert exit_code(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "arguments: " in said
    assert "argparse.Namespace" in said
    assert "and 1 more (--lossy leaves out" in said
    assert exit_code(["checkpoint", "show", str(folder)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["format", "torch.distributed.checkpoint"] in shown
    assert ["w", "F32", "3", "1", "12", "B"] in shown
    assert ["epoch", "3"] in shown
    assert ["arguments", "in", "asks", "for", "argparse.Namespace"] in [line[:2] + line[-3:] for line in shown]
    assert exit_code(["checkpoint", "show", str(folder), "--json"]) == 2
    assert "native: has no manifest; expected --json for a checkpoint of tlaunch" in capsys.readouterr().err
    assert exit_code([*words, "--lossy"]) == 0
    said = capsys.readouterr().out
    assert "step 0: 1 tensor, 12 B, and 1 value of" in said
    assert "left out: arguments" in said
    hostile = next(line for line in said.splitlines() if line.startswith("left out: hostile"))
    assert hostile.endswith("not loaded, as that would run code: it asks for posix.system")
    assert open_source(tmp_path / "run").values["epoch"] == 3
    assert not (tmp_path / "marker").exists()
    with pytest.raises(Unusable, match="not in the state: arguments, hostile"):
        load(folder, {"w": torch.zeros(3), "epoch": 0})


def test_files_that_are_missing_or_cut_off(tmp_path: Path) -> None:
    folder = native(tmp_path / "native", {"w": torch.ones(1000), "epoch": 3})
    (shard,) = folder.glob("*.distcp")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(Damaged, match=rf"{shard.name}: this file ends after {len(data) - 1} bytes"):
        open_source(folder)
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(CheckpointError, match=shard.name):
        everything(open_source(folder))
    shard.unlink()
    with pytest.raises(Damaged, match=rf"{shard.name}: this file is missing; .*\.metadata names it"):
        open_source(folder)
    shard.touch()
    (folder / ".metadata").unlink()
    with pytest.raises(Unusable, match=r"has files of torch\.distributed\.checkpoint, but no \.metadata"):
        open_source(folder)


def test_what_is_cut_across_its_rows_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight ranks have saved a tensor by columns, of which each piece of its stream holds a part of all."""
    whole = torch.arange(8 * 64.0).view(8, 64)
    folder = native(tmp_path / "native", {f"w{at}": whole[:, 8 * at : 8 * at + 8].clone() for at in range(8)})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    tensors, places = metadata.state_dict_metadata, metadata.storage_data
    chunks = []
    for at in range(8):
        (chunk,) = tensors.pop(f"w{at}").chunks
        chunks.append(replace(chunk, offsets=torch.Size((0, 8 * at))))
        (index,) = (index for index in places if index.fqn == f"w{at}")
        places[MetadataIndex("w", chunks[-1].offsets)] = places.pop(index)
    tensors["w"] = TensorStorageMetadata(TensorProperties(torch.float32), whole.shape, chunks)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    found = open_source(folder)
    monkeypatch.setattr(source, "AT_ONCE", 64 * 4)  # a row
    read = []
    read_into = LocalFiles.read_into

    def watched(self: LocalFiles, name: str, begin: int, buffer: memoryview) -> int:
        read.append(begin)
        return read_into(self, name, begin, buffer)

    monkeypatch.setattr(LocalFiles, "read_into", watched)
    assert b"".join(source.stream(found.tensors["w"], found.reader())) == whole.numpy().tobytes()
    assert len(read) == len(set(read)) == 8
    monkeypatch.setattr(distcp, "_KEPT", 3 * 8 * 8 * 4)  # no more than three are held in memory
    found = open_source(folder)
    assert b"".join(source.stream(found.tensors["w"], found.reader())) == whole.numpy().tobytes()
    assert len(read) == 8 + 8 * 8


def test_a_model_of_one_process(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    folder = native(tmp_path / "checkpoint-40", {"model": model.state_dict()})
    other = nn.Linear(3, 2)
    load(folder, {"model": other})
    assert other.weight.equal(model.weight)
    words = ["--rename", r"^model\.(w.*)=net.\1", "--rename", "^model=net", "--dtype", "bf16"]
    assert exit_code(["checkpoint", "import", str(folder), str(tmp_path / "run"), *words]) == 0
    found = open_source(tmp_path / "run")
    assert found.step == 40
    assert found.tensors.keys() == {"net.weight", "net.bias"}
    assert everything(found)["net.weight"].equal(model.weight.bfloat16())
