from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlaunch.launcher.observe.writer import PER_LINE, Writer

LONG = "x" * 50_000
"""One fits into a pipe, two do not."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: the reader's end and the writer's."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(writer)


def test_lines_come_in_order(tmp_path: Path) -> None:
    writer = Writer()
    with (tmp_path / "a").open("wb") as a, (tmp_path / "b").open("wb") as b:
        for number in range(1000):
            writer.write((a if number % 2 else b).fileno(), f"{number} é \udcff")
        writer.close()
    odd, even = ((tmp_path / name).read_text().splitlines() for name in "ab")
    assert odd == [f"{number} é ?" for number in range(1, 1000, 2)]
    assert even == [f"{number} é ?" for number in range(0, 1000, 2)]


def test_without_lines_there_is_no_thread() -> None:
    before = threading.active_count()
    writer = Writer()
    writer.close()
    assert threading.active_count() == before


@pytest.fixture
def stuck(pipe: tuple[int, int]) -> Writer:
    """A writer with room for eleven, whose thread hangs in writing its second line, and 18 lines left out."""
    writer = Writer(most=11 * (len(LONG) + 1 + PER_LINE))
    for _ in range(2):
        writer.write(pipe[1], LONG)
    while writer._queue.qsize():
        writer._thread.join(0.001)
    for _ in range(28):
        writer.write(pipe[1], LONG)
    return writer


def test_a_reader_who_pauses_holds_nobody_up(pipe: tuple[int, int], stuck: Writer) -> None:
    reader, end = pipe
    data = b""
    while stuck._queue.qsize() > 5:
        data += os.read(reader, 1 << 20)
    stuck.write(end, "after the pause")
    while not data.endswith(b"after the pause\n"):
        data += os.read(reader, 1 << 20)
    lines = data.decode().splitlines()
    assert lines == [LONG] * 12 + ["(18 lines left out; the log files have them)", "after the pause"]
    stuck.close()
    assert not stuck._thread.is_alive()
    os.close(reader)


def test_lines_without_text_take_room_too(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    writer = Writer(most=2 * (len(LONG) + 1 + PER_LINE))
    for _ in range(2):
        writer.write(end, LONG)
        while writer._queue.qsize():
            writer._thread.join(0.001)
    empty = len(LONG) // PER_LINE + 2  # more than fit beside the second one, which is being written
    for _ in range(empty):
        writer.write(end, "")
    assert 0 < writer._queue.qsize() < empty
    os.close(reader)
    writer.close()
    assert not writer._thread.is_alive()


def test_a_reader_who_never_comes_back_does_not_keep_us(pipe: tuple[int, int], stuck: Writer) -> None:
    reader, end = pipe
    stuck.close(0.01)
    assert stuck._thread.is_alive()
    stuck.write(end, "too late")
    os.close(reader)  # now the write fails
    stuck._thread.join(10)
    assert not stuck._thread.is_alive()


def test_a_reader_who_has_gone_is_no_error(pipe: tuple[int, int], tmp_path: Path) -> None:
    reader, end = pipe
    os.close(reader)
    writer = Writer()
    with (tmp_path / "b").open("wb") as other:
        writer.write(end, "nobody reads this")
        writer.write(end, "nor this")
        writer.write(other.fileno(), "but this")
        writer.close()
    assert (tmp_path / "b").read_text() == "but this\n"
