"""``tlaunch checkpoint``: what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.checkpoint.breaking import flip
from tests.checkpoint.writing import part_of, pieces_of, save
from tlaunch.checkpoint.commit import try_commit, write_part
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.shard import Piece
from tlaunch.checkpoint.shown import size
from tlaunch.launcher.cli.main import exit_code


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    """A place with two checkpoints, and one that was never committed."""
    files = LocalFiles(tmp_path / "run")
    for step in (10, 20):
        assert save(files, Address(1, step))
    unfinished = Address(1, 30)
    write_part(files, part_of(unfinished, 0), pieces_of(unfinished, 0))
    return files


def test_list(files: LocalFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["checkpoint", "ls", files.root]) == 0
    header, first, second, third = capsys.readouterr().out.splitlines()
    assert header.split() == ["step", "generation", "saved", "ranks", "size", "tensors"]
    assert first.split()[:4] == ["10", "1", "2026-01-01T00:00:00Z", "2"]
    assert second.split()[0] == "20"
    assert third.split() == ["30", "1", "not", "committed"]
    assert exit_code(["checkpoint", "ls", files.root, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["step"], each["committed"]) for each in found] == [(10, True), (20, True), (30, False)]


def test_the_folder_of_a_single_checkpoint(files: LocalFiles, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(Path(files.root, Address(1, 10).folder))
    assert exit_code(["checkpoint", "ls", folder]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "10"]
    assert exit_code(["checkpoint", "show", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["body"]["step"] == 10
    assert exit_code(["checkpoint", "verify", folder]) == 0
    assert capsys.readouterr().out == "step 10, generation 1: 388 B, all as written\n"
    assert exit_code(["checkpoint", "prune", folder, "--last", "1"]) == 2
    assert "this is one checkpoint; expected the folder in which" in capsys.readouterr().err
    assert exit_code(["checkpoint", "ls", str(Path(files.root, Address(1, 30).folder))]) == 2
    assert "this checkpoint was never committed" in capsys.readouterr().err
    assert Path(folder).exists()


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """A path with a checkpoint whose names and values look like something else."""
    files, address = LocalFiles(tmp_path / "odd [bold]"), Address(1, 1)
    names = ("h.10.[/bold]", "h.9.:smile:", f"h.{'0' * 150}", "red\x1b[31m", "half\ud800", "two\nlines")
    pieces = [Piece(name, "U8", (1,), Region.whole((1,)), memoryview(b"x")) for name in names]
    write_part(files, replace(part_of(address, 0, 1), values={"a": "[/bold]", "b": {"$tuple": [1]}}), pieces)
    assert try_commit(files, address, 1)
    return files.root


def test_names_are_shown_as_they_are(odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["checkpoint", "show", odd]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    begin = lines.index(["tensors"]) + 2
    shown = [line[0] for line in lines[begin : begin + 6]]
    assert shown == [f"h.{'0' * 150}", "h.9.:smile:", "h.10.[/bold]", "half\\ud800", "red\\x1b[31m", "two\\nlines"]
    assert lines[-2:] == [["a", "'[/bold]'"], ["b", "(1,)"]]
    shard = Path(odd, Address(1, 1).shard(0))
    shard.unlink()
    assert exit_code(["checkpoint", "verify", odd]) == 1
    said = capsys.readouterr()
    assert said.out == f"step 1, generation 1: {shard}: this shard is missing\n"
    assert said.err == "", "no bar where nobody looks"


def test_a_narrow_terminal_cuts_nothing_off(
    odd: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    pictures = []
    for command in ("ls", "show"):
        assert exit_code(["checkpoint", command, odd]) == 0
        pictures.append(re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out))
        assert max(map(len, pictures[-1].splitlines())) == 40
        assert "\N{HORIZONTAL ELLIPSIS}" not in pictures[-1]
    assert pictures[1].count("0") >= 150
    assert "\\x1b[31m" in pictures[1]
    assert "[/bold]" in pictures[1]


def test_sizes() -> None:
    counts = (0, 999, 999.4, 1000, 999_499, 999_999, 1_234_000_000, 5e15)
    assert [*map(size, counts)] == ["0 B", "999 B", "999 B", "1 kB", "999 kB", "1 MB", "1.23 GB", "5 PB"]


def test_show(files: LocalFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["checkpoint", "show", files.root]) == 0
    said = capsys.readouterr().out
    assert ["step", "20"] in [line.split() for line in said.splitlines()]
    assert ["w", "F32", "2x8", "2", "64", "B"] in [line.split() for line in said.splitlines()]
    assert ["epoch", "2"] in [line.split() for line in said.splitlines()]
    assert ["tensors", "2,", "68", "B"] in [line.split() for line in said.splitlines()]
    assert exit_code(["checkpoint", "show", files.root, "--step", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["body"]["step"] == 10


def test_verify_looks_at_all_of_them_and_names_what_is_damaged(
    files: LocalFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["checkpoint", "verify", files.root]) == 0
    assert capsys.readouterr().out.count("all as written") == 2
    flip(Path(files.root, Address(1, 10).shard(1)), -1)
    assert exit_code(["checkpoint", "verify", files.root]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "rank-00001.safetensors: bytes 0 to " in said[0]
    assert said[1].endswith("all as written")
    assert exit_code(["checkpoint", "verify", files.root, "--step", "20"]) == 0


def test_prune(files: LocalFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["checkpoint", "prune", files.root, "--last", "1", "--dry-run"]) == 0
    assert capsys.readouterr().out == "would remove step 10, generation 1\n"
    assert exit_code(["checkpoint", "prune", files.root, "--last", "1"]) == 0
    assert capsys.readouterr().out == "removed step 10, generation 1\n"
    assert exit_code(["checkpoint", "prune", files.root, "--last", "1"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ls"], "path: expected where a job keeps its checkpoints"),
        (["ls", "/nowhere"], "/nowhere: there is no checkpoint; expected the path that a job saves to"),
        (["verify", "/nowhere"], "/nowhere: there is no checkpoint; expected the path that a job saves to"),
        (["show", "/nowhere"], "/nowhere: there is no checkpoint; expected a path that a job saves to, a directory of"),
        (["prune", "/nowhere", "--last", "1"], "/nowhere: there is no checkpoint; expected the path that a job saves"),
        (["show", "RUN", "--step", "7"], "no checkpoint of step 7; there are 10, 20"),
        (["show", "RUN", "--step", "x"], "--step: expected a whole number of at least 0, got 'x'"),
        (["prune", "RUN"], "--last: expected how many of the newest checkpoints to keep"),
    ],
)
def test_bad_input_is_one_line(
    files: LocalFiles, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["checkpoint", *(files.root if word == "RUN" else word for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert complaint in said


def test_it_needs_no_torch(files: LocalFiles) -> None:
    program = (
        "import sys\n"
        "from tlaunch.launcher.cli.main import exit_code\n"
        f"code = exit_code(['checkpoint', 'verify', {files.root!r}])\n"
        "sys.exit(code or 'torch' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, stdout=subprocess.DEVNULL)
