"""What ranks print reaches the reader line by line, complete, and in order."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tlaunch.launcher.control.output import BACKLOG, KEPT, LONGEST_LINE, Output


@asynccontextmanager
async def following() -> AsyncIterator[tuple[Output, asyncio.StreamReader]]:
    """An ``Output`` that runs, and the other end of what it writes to."""
    loop = asyncio.get_running_loop()
    read_fd, write_fd = os.pipe()
    reader = asyncio.StreamReader(limit=1 << 20)
    incoming, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb"))
    outgoing, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop=loop), os.fdopen(write_fd, "wb")
    )
    output = Output(asyncio.StreamWriter(outgoing, protocol, None, loop))
    running = asyncio.create_task(output.run())
    try:
        async with asyncio.timeout(10):
            yield output, reader
    finally:
        running.cancel()
        await asyncio.wait([running])
        await output.drain(5.0)
        outgoing.abort()
        incoming.close()


async def read(reader: asyncio.StreamReader) -> tuple[int, str, str]:
    record = json.loads(await reader.readline())
    return record["rank"], record["stream"], record["text"]


async def test_lines_arrive_while_the_file_grows(tmp_path: Path) -> None:
    async with following() as (output, reader):
        output.follow(5, "out", str(tmp_path / "out"))
        with (tmp_path / "out").open("a", buffering=1) as file:
            file.write("one\n")
            assert await read(reader) == (5, "out", "one")
            file.write("two\nthr")
            assert await read(reader) == (5, "out", "two")
            file.write("ee\n")
            assert await read(reader) == (5, "out", "three")
        output.finish(5)


async def test_a_last_line_without_an_end_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "err").write_bytes(b"Killed")
    async with following() as (output, reader):
        output.follow(0, "err", str(tmp_path / "err"))
        output.finish(0)
        assert await read(reader) == (0, "err", "Killed")


async def test_a_line_of_any_length_is_cut_and_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"x" * (3 * LONGEST_LINE) + b"\nnext\n")
    async with following() as (output, reader):
        output.follow(0, "out", str(tmp_path / "out"))
        output.finish(0)
        lines = [(await read(reader))[2]]
        while lines[-1] != "next":
            lines.append((await read(reader))[2])
        assert max(map(len, lines)) <= LONGEST_LINE


@pytest.mark.parametrize("junk", [b"\xff\xfe\n", b"\x1b[31mred\x1b[0m\n", b"\r\n", b"\n"])
async def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "out").write_bytes(junk + b"after\n")
    async with following() as (output, reader):
        output.follow(0, "out", str(tmp_path / "out"))
        output.finish(0)
        await read(reader)
        assert await read(reader) == (0, "out", "after")


async def test_the_last_words_are_handed_over_after_the_copying_was_cancelled(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    read_fd, write_fd = os.pipe()
    outgoing, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop=loop), os.fdopen(write_fd, "wb")
    )
    output = Output(asyncio.StreamWriter(outgoing, protocol, None, loop))
    running = asyncio.create_task(output.run())
    output.follow(0, "out", str(tmp_path / "out"))
    running.cancel()
    await asyncio.wait([running])
    (tmp_path / "out").write_text("why I die\n")
    await output.drain(5.0)
    with os.fdopen(read_fd, "rb") as reader:
        assert json.loads(reader.readline())["text"] == "why I die"
    outgoing.abort()


async def test_a_rank_that_is_started_again_gets_its_new_file_followed(tmp_path: Path) -> None:
    (tmp_path / "first").write_text("first life\n")
    (tmp_path / "second").write_text("second life\n")
    async with following() as (output, reader):
        output.follow(1, "out", str(tmp_path / "first"))
        output.finish(1)
        output.follow(1, "out", str(tmp_path / "second"))
        assert [await read(reader), await read(reader)] == [(1, "out", "first life"), (1, "out", "second life")]
        output.finish(1)


async def test_what_nobody_can_keep_up_with_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "out"
    line = b"x" * 99 + b"\n"
    path.write_bytes(b"first\n" + line * (BACKLOG // len(line) + 1))
    async with following() as (output, reader):
        output.follow(5, "out", str(path))
        output.finish(5)
        _, _, gap = await read(reader)
        (shown,) = re.findall(r"^\(([\d,]+) bytes left out here; ", gap)
        assert gap.endswith(f"{path} has them)")
        left = path.stat().st_size - int(shown.replace(",", ""))
        assert 0 < left <= KEPT
        assert left % len(line) == 0, "what is shown begins with a line"
        assert await read(reader) == (5, "out", "x" * 99)
