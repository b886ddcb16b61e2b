"""Writing past the page cache gives the same files, wherever the memory lies and whatever the file system can."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlaunch.checkpoint import direct
from tlaunch.checkpoint.direct import LARGE, write_all
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.shard import write_file


@pytest.fixture
def memory() -> memoryview:
    """Give pages full of random bytes: three chunks and a half, and a little more."""
    view = memoryview(mmap.mmap(-1, 4 * LARGE))
    view[:] = random.Random(0).randbytes(len(view))
    return view[: 3 * LARGE + LARGE // 2 + 123]


@pytest.fixture
def direct_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the sizes of what is written past the page cache."""
    sizes: list[int] = []
    write = os.pwrite

    def watched(fd: int, data: memoryview, at: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            sizes.append(len(data))
        return write(fd, data, at)

    monkeypatch.setattr(os, "pwrite", watched)
    return sizes


def chunks_of(view: memoryview, *sizes: int) -> Iterator[memoryview]:
    begin = 0
    for size in (*sizes, len(view)):
        yield view[begin : begin + size]
        begin += size


@pytest.mark.parametrize(
    ("sizes", "direct"),
    [
        ((LARGE, LARGE, LARGE), 3),
        ((2 * LARGE,), 2),
        ((1,), 0),
        ((4096, LARGE, LARGE), 3),
        ((LARGE, LARGE, 77), 2),
    ],
)
def test_the_file_is_what_was_given(
    tmp_path: Path, memory: memoryview, direct_writes: list[int], sizes: tuple[int, ...], direct: int
) -> None:
    LocalFiles(tmp_path).write("file", chunks_of(memory, *sizes))
    assert (tmp_path / "file").read_bytes() == memory
    assert len(direct_writes) == direct


def test_memory_that_is_not_aligned(tmp_path: Path, memory: memoryview, direct_writes: list[int]) -> None:
    moved = memory[8:]
    LocalFiles(tmp_path).write("file", chunks_of(moved, LARGE, LARGE))
    assert (tmp_path / "file").read_bytes() == moved
    assert direct_writes  # it was tried


def test_a_file_system_that_cannot(tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = fcntl.fcntl

    def refuse(fd: int, what: int, flags: int = 0) -> int:
        if what == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not here")
        return ask(fd, what, flags)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    LocalFiles(tmp_path).write("file", chunks_of(memory, LARGE, LARGE, LARGE))
    assert (tmp_path / "file").read_bytes() == memory


def test_no_room_is_kept_that_is_not_used(tmp_path: Path, memory: memoryview) -> None:
    LocalFiles(tmp_path).write("file", chunks_of(memory[: 2 * LARGE], LARGE))
    stat = (tmp_path / "file").stat()
    assert stat.st_size == 2 * LARGE
    assert stat.st_blocks * 512 < 2 * LARGE + (1 << 20)


def test_room_that_could_only_be_reserved_in_part_makes_the_file_no_longer(
    tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reserve(fd: int, mode: int, begin: int, size: int) -> int:
        del mode
        os.ftruncate(fd, begin + size // 2)  # as ext4 does until it finds no more
        return -1

    monkeypatch.setattr(direct, "_FALLOCATE", reserve)
    LocalFiles(tmp_path).write("file", chunks_of(memory, LARGE))
    assert (tmp_path / "file").read_bytes() == memory


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, memory: memoryview) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_file(LocalFiles(tmp_path), ".", "file", memory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_chunks_that_end_with_an_error(tmp_path: Path, memory: memoryview) -> None:
    def broken() -> Iterator[memoryview]:
        yield memory[:LARGE]
        raise RuntimeError("no more")

    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(RuntimeError, match="no more"):
            write_all(fd, broken())
    finally:
        os.close(fd)
