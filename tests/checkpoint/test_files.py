"""The same contract for a local disk and for an object store."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint.breaking import fill_up
from tests.checkpoint.writing import save
from tlaunch.checkpoint.catalog import Keep, committed, manifest_of, prune
from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.files import Files, LocalFiles
from tlaunch.checkpoint.generations import clean, take_generation
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.places import open_files
from tlaunch.checkpoint.reading import verify


@pytest.fixture(params=["local", "file", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """An empty place of each kind."""
    roots = {"local": str(tmp_path), "file": tmp_path.as_uri(), "memory": f"memory://{uuid.uuid4().hex}/ck"}
    return open_files(roots[request.param])


def test_a_file_is_whole_or_not_there(files: Files) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"abc"
        raise OSError(errno.EIO, "broken")

    files.make("a")
    files.write("a/x", [b"12", memoryview(b"345")])
    assert files.read("a/x", 100) == b"12345"
    assert files.read("a/x", 2) == b"12"
    assert files.size("a/x") == 5
    with pytest.raises(OSError, match="broken"):
        files.write("a/y", breaks())
    assert files.names("a") == ["x"]
    files.write("a/x", [b"new"])
    assert files.read("a/x", 100) == b"new"


def test_a_broken_write_leaves_the_old_file(tmp_path: Path) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"abc"
        raise OSError(errno.EIO, "broken")

    files = LocalFiles(tmp_path)
    files.write("x", [b"12345"])
    with pytest.raises(OSError, match="broken"):
        files.write("x", breaks())
    assert files.read("x", 100) == b"12345"
    assert files.names() == ["x"]


def test_ranges(files: Files) -> None:
    files.make("")
    files.write("x", [bytes(range(100))])
    buffer = memoryview(bytearray(10))
    assert files.read_into("x", 20, buffer) == 10
    assert bytes(buffer) == bytes(range(20, 30))
    assert files.read_into("x", 95, buffer) == 5
    with pytest.raises(FileNotFoundError):
        files.read_into("nothing", 0, buffer)
    with pytest.raises(FileNotFoundError):
        files.size("nothing")


def test_created_once(files: Files) -> None:
    files.make("")
    files.create("x", b"1")
    with pytest.raises(FileExistsError):
        files.create("x", b"2")
    assert files.read("x", 10) == b"1"


def test_names_and_removal(files: Files) -> None:
    assert files.names() == []
    files.make("a")
    files.write("a/x", [b"1"])
    files.write("b", [b"1"])
    assert files.names() == ["a", "b"]
    assert files.names("b") == files.names("nothing") == []
    for name in ("a", "b", "b", "nothing"):
        files.remove(name)
    assert files.names() == []


def test_checkpoints(files: Files) -> None:
    assert take_generation(files, {}) == 1
    for step in (10, 20):
        assert save(files, Address(1, step))
    assert committed(files) == [Address(1, 10), Address(1, 20)]
    assert verify(files, Address(1, 20), manifest_of(files, Address(1, 20))) > 0
    assert take_generation(files, {}) == 2
    assert clean(files, 2) == ["generation-00000001.json"]
    assert prune(files, Keep(last=1)) == [Address(1, 10)]
    assert committed(files) == [Address(1, 20)]


def test_a_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = open_files("ck")
    monkeypatch.chdir("/")
    files.make("")
    assert (tmp_path / "ck").is_dir()
    with pytest.raises(Unusable, match="the path of the checkpoints is empty"):
        open_files("")


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LocalFiles(tmp_path)
    assert save(files, Address(1, 10))
    with monkeypatch.context() as patch:
        fill_up(patch, 200)
        with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors: writing a shard failed: no space is left"):
            save(files, Address(1, 20))
    assert committed(files) == [Address(1, 10)]
    assert not list(tmp_path.rglob(".draft-*"))
    assert save(files, Address(1, 20))
