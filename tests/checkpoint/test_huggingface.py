"""What is exported is what ``safetensors`` and ``transformers`` load, and what they write is imported."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.checkpoint.exchange import everything
from tlaunch.checkpoint import Checkpointer, CheckpointError, Damaged, Unusable, load
from tlaunch.checkpoint.opening import open_source
from tlaunch.launcher.cli.main import exit_code

os.environ["HF_HUB_OFFLINE"] = "1"
transformers: Any = importlib.import_module("transformers")  # takes seconds, and its types too


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A very small GPT-2, whose first and last weights are tied."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(1)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64, n_positions=32)
    made: nn.Module = transformers.GPT2LMHeadModel(config)
    return made.eval()


@pytest.fixture(scope="module")
def run(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a training of it has saved step 12."""
    path = tmp_path_factory.mktemp("saved") / "run"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Checkpointer(path) as checkpointer:
        assert checkpointer.save(12, {"model": model, "optimizer": optimizer, "epoch": 3}).result(60)
    return path


def logits(model: nn.Module) -> torch.Tensor:
    """Return what a model makes of a text."""
    with torch.no_grad():
        made: torch.Tensor = model(torch.arange(20)[None]).logits
    return made


def loaded(folder: Path, model: nn.Module, **settings: object) -> nn.Module:
    """Have transformers load a folder, and check that it missed nothing."""
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    made, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True, **settings)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found: nn.Module = made.eval()
    return found


def test_exported_and_loaded(run: Path, model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert exit_code(["checkpoint", "export", str(run), str(out), "--hf"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{out}: {len(model.state_dict())} tensors")
    assert said[0].endswith("step-000000012.g00001: model.safetensors")
    assert said[-2].endswith("values, for which this layout has no place")
    assert said[-1] == (
        "the same bytes under each of these names, as tied weights have: lm_head.weight, transformer.wte.weight"
    )
    assert sorted(path.name for path in out.iterdir()) == ["model.safetensors"]
    found = load_file(out / "model.safetensors")
    assert found.keys() == model.state_dict().keys()
    assert all(found[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert logits(loaded(out, model)).equal(logits(model))


def test_several_shards_other_types_and_other_names(run: Path, model: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--dtype", "bf16", "--shard-size", "5kB", "--rename", r"\.h\.(\d+)\.=.layers.\1.", "--step", "12"]
    assert exit_code(["checkpoint", "export", str(run), str(out), *options]) == 0
    index = json.loads((out / "model.safetensors.index.json").read_bytes())
    names = sorted(set(index["weight_map"].values()))
    count = len(names)
    assert count > 2
    assert names == [f"model-{at + 1:05d}-of-{count:05d}.safetensors" for at in range(count)]
    shards = {name: load_file(out / name) for name in names}
    assert {key: name for name, shard in shards.items() for key in shard} == index["weight_map"]
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards.values()]
    assert sum(sizes) == index["metadata"]["total_size"]
    assert max(sizes) <= 5000
    found = {key: tensor for shard in shards.values() for key, tensor in shard.items()}
    for name, tensor in model.state_dict().items():
        assert found[name.replace(".h.", ".layers.")].equal(tensor.bfloat16())
    plain = tmp_path / "plain"
    assert exit_code(["checkpoint", "export", str(run), str(plain), "--shard-size", "20kB"]) == 0
    assert logits(loaded(plain, model)).equal(logits(model))


@pytest.mark.parametrize("shard_size", ["5GB", "10KB"])
def test_imported_and_restored(
    model: nn.Module, tmp_path: Path, shard_size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved"
    model.save_pretrained(saved, max_shard_size=shard_size)  # type: ignore[operator]
    assert exit_code(["checkpoint", "import", str(saved), str(tmp_path / "run"), "--step", "5"]) == 0
    assert f"step 5: {len(model.state_dict()) - 1} tensors" in capsys.readouterr().out  # tied weights are there once
    for source in (tmp_path / "run", saved):
        other = transformers.GPT2LMHeadModel(model.config)
        assert load(source, {"model": other}) == (None if source == saved else 5)
        assert logits(other.eval()).equal(logits(model))
    other = transformers.GPT2LMHeadModel(model.config)
    with Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.restore({"model": other}) == 5
    assert logits(other.eval()).equal(logits(model))
    assert exit_code(["checkpoint", "diff", str(tmp_path / "run"), str(saved)]) == 0


# --- directories that are not what they should be; these need no transformers ---------------------------------------


def shards(folder: Path) -> Path:
    """Write two shards and their index."""
    folder.mkdir()
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(4)}, folder / "model-00001-of-00002.safetensors")
    save_file({"c": torch.ones(5, dtype=torch.int64)}, folder / "model-00002-of-00002.safetensors")
    homes = {"a": 1, "b": 1, "c": 2}
    index = {"weight_map": {name: f"model-0000{home}-of-00002.safetensors" for name, home in homes.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_single_file_and_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shards(tmp_path / "hf")
    assert exit_code(["checkpoint", "show", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line] == [
        ["format", "safetensors"], ["tensors", "3,"], ["tensors"],
        ["name", "type"], ["model.a", "F32"], ["model.b", "F32"], ["model.c", "I64"],
    ]  # fmt: skip
    assert open_source(folder).tensors.keys() == {"model.a", "model.b", "model.c"}
    file = folder / "model-00002-of-00002.safetensors"
    state = {"model": {"c": torch.zeros(5, dtype=torch.int64)}}
    assert load(file, state) is None
    assert state["model"]["c"].all()
    assert everything(open_source(file))["model.c"].equal(torch.ones(5, dtype=torch.int64))
    with pytest.raises(Unusable, match=r"model\.c is F32 \[5\] here and I64 \[5\] there"):
        load(file, {"model": {"c": torch.zeros(5)}})


def test_a_torn_index(tmp_path: Path) -> None:
    folder = shards(tmp_path / "hf")
    index, second = folder / "model.safetensors.index.json", folder / "model-00002-of-00002.safetensors"
    text, data = index.read_text(), second.read_bytes()
    for changed, complaint in (
        (text.replace('"c": "model-00002', '"c": "model-00001'), "lacks c, which is in it"),
        (text.replace('"b"', '"x"'), "holds b, which is in nowhere"),
        (text.replace("model-00002-of-00002", "../outside"), "expected the plain name of a safetensors file"),
        ('{"weight_map": {}}', "names no tensor"),
        (text.replace("weight_map", "weights"), "expected an object with the key 'weight_map'"),
        (text[:-3], "expected a JSON document"),
    ):
        index.write_text(changed)
        with pytest.raises(Damaged, match=complaint):
            open_source(folder)
    index.write_text(text)
    second.unlink()
    with pytest.raises(Damaged, match=r"model-00002-of-00002\.safetensors: this shard is missing; .*index\.json"):
        open_source(folder)
    index.unlink()
    with pytest.raises(Unusable, match=r"expected model\.safetensors\.index\.json, .* found model-00001-of-00002"):
        open_source(folder)
    second.write_bytes(data)
    with pytest.raises(Unusable, match=r"found model-00001-of-00002\.safetensors, model-00002-of-00002"):
        open_source(folder)


def test_files_that_are_cut_off_or_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(4)}, file)
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
            open_source(tmp_path)
    for old, new, complaint in (
        (b'"F32"', b'"F33"', "expected one of BOOL"),
        (b'"shape":[2,3]', b'"shape":[2,4]', "expected begin and end of 32 bytes"),
        (b'"shape":[2,3]', b'"shape":[2,x]', "expected a JSON document"),
        (data[:8], b"\xff" * 8, "are not the size of a header"),
        (
            data[:8],
            (100 << 20).to_bytes(8, "little"),
            f"ends after {len(data)} bytes, expected at least 1048",
        ),
        (b"[24,40]", b"[ 8,24]", "b begins at byte 8 of the tensors, expected 24, without gap or overlap"),
        (b"[24,40]", b"[40,56]", "b begins at byte 40 of the tensors, expected 24, without gap or overlap"),
    ):
        assert old in data
        file.write_bytes(data.replace(old, new, 1))
        with pytest.raises(Damaged, match=complaint):
            open_source(tmp_path)
    save_file({}, file)
    assert exit_code(["checkpoint", "import", str(tmp_path), str(tmp_path / "run")]) == 2
    assert f"{tmp_path}: holds nothing that could be imported" in capsys.readouterr().err
    file.write_bytes(data + b"\0")
    with pytest.raises(Damaged, match="has 41 bytes of tensors, expected 40"):
        open_source(tmp_path)
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(Unusable, match=r"holds pickles \(pytorch_model\.bin\); expected safetensors files"):
        open_source(tmp_path)
