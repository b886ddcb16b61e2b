"""``tlaunch checkpoint``: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.writing import part_of, pieces_of, save
from tlaunch.checkpoint.commit import write_part
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.layout import Address
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


def flip(files: LocalFiles, name: str) -> None:
    """Change the last bit of a file."""
    path = Path(files.root, name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


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


def test_show(files: LocalFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["checkpoint", "show", files.root]) == 0
    said = capsys.readouterr().out
    assert ["step", "20"] in [line.split() for line in said.splitlines()]
    assert ["w", "F32", "2x8", "2", "64", "B"] in [line.split() for line in said.splitlines()]
    assert ["epoch", "2"] in [line.split() for line in said.splitlines()]
    assert exit_code(["checkpoint", "show", files.root, "--step", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["body"]["step"] == 10


def test_verify_looks_at_all_of_them_and_names_what_is_damaged(
    files: LocalFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["checkpoint", "verify", files.root]) == 0
    assert capsys.readouterr().out.count("all as written") == 2
    flip(files, Address(1, 10).shard(1))
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
