"""``tlaunch checkpoint export``, ``import`` and ``diff``: what they print, how they end, and what they leave behind."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.checkpoint.breaking import fill_up
from tests.checkpoint.writing import everything, part_of, save
from tlaunch.checkpoint import CheckpointError
from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.files import Buffer, LocalFiles
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.opening import open_source
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Piece
from tlaunch.launcher.cli.main import exit_code


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    """A place with two checkpoints of two ranks: ``w`` in rows, ``scale``, and the value ``epoch``."""
    files = LocalFiles(tmp_path / "run")
    for step in (10, 20):
        assert save(files, Address(1, step))
    return files


def pieces(folder: Path, **tensors: tuple[str, list[float]]) -> LocalFiles:
    """Save step 1 of one rank: tensors by type, as ``struct`` calls it, and numbers."""
    kinds = {"f": "F32", "d": "F64", "q": "I64", "H": "U16", "?": "BOOL", "B": "U8"}
    files = LocalFiles(folder)
    given = [
        Piece(name, kinds[kind], (len(numbers),), Region.whole((len(numbers),)), memoryview(data))
        for name, (kind, numbers) in tensors.items()
        for data in (struct.pack(f"<{len(numbers)}{kind}", *numbers),)
    ]
    write_part(files, part_of(Address(1, 1), 0, 1), given)
    assert try_commit(files, Address(1, 1), 1)
    return files


def differing(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """Compare, and return the table's rows as words."""
    assert exit_code(["checkpoint", "diff", *words]) == 1
    header, *rows, _, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "differs", "in", "first", "second"]
    assert last == f"different: {len(rows)}"
    return [row.split() for row in rows]


def test_what_differs_is_shown(files: LocalFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert differing(capsys, f"{files.root}@10", files.root) == [
        ["epoch", "value", "1", "2"],
        ["scale", "1", "of", "1", "elements,", "by", "up", "to", "1e+04", "F32", "scalar", "F32", "scalar"],
        ["w", "16", "of", "16", "elements,", "by", "up", "to", "1e+04", "F32", "2x8", "F32", "2x8"],
    ]


def test_equal_ones_are_not_read(files: LocalFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(files.root, tmp_path / "copy")
    assert exit_code(["checkpoint", "diff", f"{files.root}@20", str(copy / Address(1, 20).folder)]) == 0
    assert capsys.readouterr().out == "equal: 2 tensors (2 by their checksums alone), 1 value\ndifferent: 0\n"


def test_numbers_are_compared_as_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nan, inf = math.nan, math.inf
    one = pieces(
        tmp_path / "one",
        zero=("f", [0.0, nan]), nan=("f", [1, 2, nan]), inf=("d", [inf, 1]), big=("q", [2**62, 5]),
        short=("H", [65535, 1]), flag=("?", [True, False]), kind=("f", [1]), shape=("B", [1]), mine=("B", [1]),
    )  # fmt: skip
    other = pieces(
        tmp_path / "other",
        zero=("f", [-0.0, nan]), nan=("f", [1, nan, 5]), inf=("d", [-inf, 1]), big=("q", [2**62 + 1, 5]),
        short=("H", [0, 1]), flag=("?", [True, True]), kind=("d", [1]), shape=("B", [1, 1]), yours=("B", [1]),
    )  # fmt: skip
    found = {name: " ".join(rest) for name, *rest in differing(capsys, one.root, other.root)}
    assert found == {
        "nan": "2 of 3 elements, by up to nan F32 3 F32 3",
        "inf": "1 of 2 elements, by up to inf F64 2 F64 2",
        "big": "1 of 2 elements, by up to 0 I64 2 I64 2",  # as far as doubles can tell
        "short": "1 of 2 elements, by up to 6.55e+04 U16 2 U16 2",
        "flag": "1 of 2 elements, by up to 1 BOOL 2 BOOL 2",
        "kind": "type or shape F32 1 F64 1",
        "shape": "type or shape U8 1 U8 2",
        "mine": "only in the first U8 1",
        "yours": "only in the second U8 1",
    }


def test_export_and_import_bring_everything_back(
    files: LocalFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, back = str(tmp_path / "out"), str(tmp_path / "back")
    assert exit_code(["checkpoint", "export", files.root, out, "--prefix", "", "--hf"]) == 0
    assert "2 tensors, 68 B of" in capsys.readouterr().out
    assert exit_code(["checkpoint", "import", out, back, "--rename", r"^model\.=", "--step", "20"]) == 0
    assert capsys.readouterr().out == f"{back}: step 20: 2 tensors, 68 B, and 0 values of {out}\n"
    assert differing(capsys, files.root, back) == [["epoch", "only", "in", "the", "first", "2"]]
    assert exit_code(["checkpoint", "verify", back]) == 0


def test_many_tensors_of_the_same_bytes_are_no_long_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, address = LocalFiles(tmp_path / "run"), Address(1, 1)
    zeros = [Piece(f"a{at:02}", "U8", (2, 2), Region.whole((2, 2)), memoryview(bytes(4))) for at in range(10)]
    write_part(files, part_of(address, 0, 1), zeros)
    assert try_commit(files, address, 1)
    assert exit_code(["checkpoint", "export", files.root, str(tmp_path / "out"), "--prefix", ""]) == 0
    assert "tied weights have: a00, a01, a02, a03, a04, a05, a06, a07, and 2 more\n" in capsys.readouterr().out


def test_to_an_object_store_and_back(files: LocalFiles, tmp_path: Path) -> None:
    out = "memory://exchange/out"
    assert exit_code(["checkpoint", "export", files.root, out, "--prefix", "", "--shard-size", "60B"]) == 0
    assert exit_code(["checkpoint", "export", files.root, out, "--prefix", ""]) == 2  # it is not empty any more
    back = ""
    for source in (out, f"{out}/model-00001-of-00002.safetensors"):
        back = f"{source}-imported"
        assert exit_code(["checkpoint", "import", source, back]) == 0
        assert exit_code(["checkpoint", "diff", back, source]) == 0
    assert exit_code(["checkpoint", "diff", back, out]) == 1


def test_they_need_no_torch(files: LocalFiles, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from tlaunch.launcher.cli.main import exit_code\n"
        "run, out, back = sys.argv[1:]\n"
        "codes = [exit_code(['checkpoint', *words]) for words in (\n"
        "    ['export', run, out, '--prefix', ''], ['import', out, back, '--rename', '^model.='],\n"
        "    ['diff', run + '@20', run], ['diff', run, back])]\n"
        "sys.exit(codes != [0, 0, 0, 1] or 'torch' in sys.modules)\n"
    )
    words = [sys.executable, "-c", program, files.root, str(tmp_path / "out"), str(tmp_path / "back")]
    subprocess.run(words, check=True, timeout=30, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["export", "RUN"], "expected PATH, where a job keeps its checkpoints, and TARGET"),
        (["export", "/nowhere", "OUT"], "/nowhere: there is no checkpoint; expected a path that a job saves to, a dir"),
        (["export", "RUN", "OUT", "--step", "7"], "no checkpoint of step 7; there are 10, 20"),
        (["export", "RUN", "OUT"], "no tensor's name starts with 'model.'; there are scale, w"),
        (["export", "RUN", "FULL", "--prefix", ""], "full: is not empty (mine); expected an empty folder or none"),
        (["export", "RUN", "FILE", "--prefix", ""], "full/mine: is a file; expected an empty folder or none"),
        (
            ["export", "RUN", "BELOW", "--prefix", ""],
            "full/mine/out: a file is in the way; expected an empty folder, or wh",
        ),
        (["export", "RUN", "OUT", "--prefix", "", "--rename", "scale=w"], "w and scale would both be called w"),
        (["export", "RUN", "OUT", "--prefix", "", "--rename", "^w="], "w: would be called '', which is no name"),
        (["export", "RUN", "OUT", "--prefix", "", "--rename", "x=y"], "rename x=y: no name fits; one of them is scale"),
        (["export", "RUN", "OUT", "--prefix", "", "--rename", r"w=\2"], r"rename w=\2: invalid group reference 2"),
        (["export", "RUN", "OUT", "--rename", "(=y"], "--rename: expected OLD=NEW, where OLD is a regular expression:"),
        (
            ["export", "RUN", "OUT", "--rename", "w"],
            "expected OLD=NEW, where OLD is a regular expression, got",
        ),
        (["export", "RUN", "OUT", "--dtype", "int8"], "--dtype: expected bf16, fp16 or fp32, got 'int8'"),
        (["export", "RUN", "OUT", "--shard-size", "0GB"], "--shard-size: expected a size, such as 5GB or 500MB"),
        (["import", "RUN"], "import: expected SOURCE, and PATH"),
        (["import", "RUN", "OUT"], "is a checkpoint of tlaunch already"),
        (
            ["import", "FULL", "OUT"],
            "full: there is no checkpoint; expected a path that a job",
        ),
        (["import", "/nowhere.safetensors", "OUT"], "/nowhere.safetensors: expected a safetensors file: No such file"),
        (["diff", "RUN"], "diff: expected two checkpoints, each as PATH or PATH@STEP"),
        (["diff", "RUN", "RUN@7"], "run: no checkpoint of step 7; there are 10, 20"),
        (["diff", "RUN", "FULL"], "full: there is no checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    files: LocalFiles, tmp_path: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    before = everything(tmp_path)
    names = {
        "RUN": files.root,
        "OUT": str(tmp_path / "out"),
        "FULL": str(full),
        "FILE": str(full / "mine"),
        "BELOW": str(full / "mine" / "out"),
    }
    names["RUN@7"] = f"{files.root}@7"
    assert exit_code(["checkpoint", *(names.get(word, word) for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert complaint in said
    assert everything(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_what_is_damaged_is_not_exported(files: LocalFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.iterdir())
    shard = Path(files.root, Address(1, 20).shard(1))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    out = tmp_path / "folders" / "above" / "out"
    assert exit_code(["checkpoint", "export", files.root, str(out), "--prefix", ""]) == 1
    assert "rank-00001.safetensors: bytes 0 to " in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    assert exit_code(["checkpoint", "diff", files.root, files.root + "@10"]) == 2


@pytest.mark.parametrize("command", ["ls", "export", "diff"])
def test_a_path_that_the_operating_system_refuses(
    files: LocalFiles, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "/" + "x" * 300
    words = {"ls": [long], "export": [files.root, long, "--prefix", ""], "diff": [files.root, f"{long}@7"]}
    assert exit_code(["checkpoint", command, *words[command]]) == (2 if command == "diff" else 1)
    assert re.fullmatch(rf"tlaunch: {long}: [a-z ]+ failed: File name too long\n", capsys.readouterr().err)


@pytest.mark.parametrize("what", ["export", "import"])
def test_a_full_disk(
    files: LocalFiles, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "hf", tmp_path / "out"
    assert exit_code(["checkpoint", "export", files.root, str(source), "--prefix", ""]) == 0
    words = ["export", files.root, str(out), "--prefix", ""] if what == "export" else ["import", str(source), str(out)]
    before = everything(tmp_path)
    with monkeypatch.context() as patch:
        fill_up(patch, 150)
        assert exit_code(["checkpoint", *words]) == 1
    assert "no space is left" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        assert exit_code(["checkpoint", *words]) == 1
    assert "too little space: 10 bytes are free, 68 are needed" in capsys.readouterr().err
    assert everything(tmp_path) == before
    assert not out.exists()
    out.mkdir()  # an empty one is as good
    assert exit_code(["checkpoint", *words]) == 0


@pytest.mark.parametrize("what", ["export", "import"])
def test_killed_at_any_point_nothing_looks_whole(
    files: LocalFiles, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each system call that changes a file, look at what would be found if it were the last one."""
    out = tmp_path / "out"
    words = ["export", files.root, str(out), "--prefix", "", "--shard-size", "60B"]
    if what == "import":
        source = str(tmp_path / "hf")
        assert exit_code(["checkpoint", "export", files.root, source, "--prefix", ""]) == 0
        words = ["import", source, str(out)]
    whole: list[bool] = []

    def look() -> None:
        try:
            open_source(out)
            whole.append(True)
        except CheckpointError:
            whole.append(False)
        # Readers of others go by these names.
        assert whole[-1] or not {"model.safetensors", "model.safetensors.index.json"} & everything(out).keys()

    fill, rename, sync = LocalFiles._fill, LocalFiles._rename, LocalFiles._sync

    def filled(self: LocalFiles, path: Path, chunks: Iterable[Buffer]) -> None:
        def watched() -> Iterable[Buffer]:
            for chunk in chunks:
                yield chunk
                look()

        fill(self, path, watched())
        look()

    monkeypatch.setattr(LocalFiles, "_fill", filled)

    def renamed(self: LocalFiles, draft: Path, path: Path) -> None:
        rename(self, draft, path)
        look()

    def synced(self: LocalFiles, folder: Path) -> None:
        sync(self, folder)
        look()

    monkeypatch.setattr(LocalFiles, "_rename", renamed)
    monkeypatch.setattr(LocalFiles, "_sync", synced)
    assert exit_code(["checkpoint", *words]) == 0
    assert len(whole) > 10
    assert whole[-1]
    last = whole.index(True)  # the rename of the index or the manifest; it is there from then on
    assert last >= len(whole) - 2 - (what == "import")
    assert all(whole[last:])
    if what == "export":
        assert json.loads((out / "model.safetensors.index.json").read_bytes())["metadata"] == {"total_size": 68}
