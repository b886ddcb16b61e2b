"""What workers print: into a file for each rank, and from there, line by line, to the agent's standard output.

The worker writes to its file itself, so that nothing is lost when the agent dies and no reader can hold it up. The
agent follows the files; that is the one place with a short pause between looks, and it is not on any recovery path.
Where a worker prints faster than that can be shown, something is left out on the way, and said to be.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Stream = Literal["out", "err"]

PAUSE = 0.1
CHUNK = 1 << 16
LONGEST_LINE = 8192

BACKLOG = 1 << 23
"""Bytes that may wait in a file to be shown. What is older than that is of no interest any more."""

KEPT = 1 << 16
"""Bytes that are shown after a gap."""


@dataclass(slots=True)
class Followed:
    """One file that grows. ``last``: nothing will be written any more once the end is reached."""

    rank: int
    stream: Stream
    path: str
    fd: int
    rest: bytes = b""
    last: bool = False

    def lines(self) -> list[str]:
        """Return the lines of the next chunk.

        One that has no end yet waits for it, unless the file is finished or the line is too long.
        """
        skipped = self._skip()
        chunk = os.read(self.fd, CHUNK)
        self.rest += chunk
        *whole, self.rest = self.rest.split(b"\n")
        if self.rest and ((self.last and not chunk) or len(self.rest) > LONGEST_LINE):
            whole.append(self.rest)
            self.rest = b""
        return skipped + [line[:LONGEST_LINE].decode(errors="replace").rstrip("\r") for line in whole]

    def _skip(self) -> list[str]:
        """Leave out what nobody can keep up with, up to the end of a line, and say so."""
        start, end = os.lseek(self.fd, 0, os.SEEK_CUR), os.fstat(self.fd).st_size
        if end - start <= BACKLOG:
            return []
        os.lseek(self.fd, end - KEPT, os.SEEK_SET)
        line = os.read(self.fd, KEPT).find(b"\n")
        position = os.lseek(self.fd, end - KEPT + line + 1, os.SEEK_SET)
        lost = position - start + len(self.rest)
        self.rest = b""
        return [f"({lost:,} bytes left out here; {self.path} has them)"]


@dataclass
class Output:
    """Follows the files of this node's ranks and writes each line as a JSON object to ``write``."""

    writer: asyncio.StreamWriter
    _files: list[Followed] = field(default_factory=list)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def follow(self, rank: int, stream: Stream, path: str) -> None:
        """Start to follow a file from its beginning; it is created if need be."""
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._files.append(Followed(rank, stream, path, fd))

    def say(self, rank: int, text: str) -> None:
        """Show a line of our own among those of a rank."""
        self._write(rank, "err", f"tlaunch: {text}")

    def notice(self, text: str) -> None:
        """Show a line that concerns the whole node."""
        self._send({"notice": text})

    def finish(self, rank: int) -> None:
        """The rank's process has ended: what stands in its files is all."""
        for file in self._files:
            if file.rank == rank:
                file.last = True

    async def run(self) -> None:
        """Copy until cancelled; ``drain`` does the rest."""
        while True:
            busy = await self._copy()
            await asyncio.sleep(0 if busy else PAUSE)

    async def drain(self, timeout: float) -> None:
        """Copy what is left, now that nothing is written any more, for ``timeout`` seconds at most."""
        for file in self._files:
            file.last = True
        try:
            async with asyncio.timeout(timeout):
                while self._files:
                    await self._copy()
        except (TimeoutError, ConnectionError):
            pass  # The reader has stalled or gone; the files hold everything.
        finally:
            for file in self._files:
                os.close(file.fd)
            self._files.clear()

    async def _copy(self) -> bool:
        """Copy one chunk of each file; false when there was nothing anywhere."""
        busy = False
        for file in list(self._files):
            before = os.lseek(file.fd, 0, os.SEEK_CUR)
            lines = file.lines()
            moved = os.lseek(file.fd, 0, os.SEEK_CUR) > before
            busy = busy or moved
            for line in lines:
                self._write(file.rank, file.stream, line)
            if file.last and not moved:
                os.close(file.fd)
                self._files.remove(file)
            if lines:
                await self.writer.drain()
        return busy

    def _write(self, rank: int, stream: Stream, text: str) -> None:
        self._send({"rank": rank, "stream": stream, "text": text})

    def _send(self, record: Mapping[str, object]) -> None:
        self.writer.write(json.dumps(record).encode() + b"\n")


class Alarm(logging.Handler):
    """Shows on the user's screen what the agent logs as an error: its log is a file on the node."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.ERROR)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.notice(record.getMessage())


def claim_standard_output() -> int:
    """Take standard output for ourselves: what else is printed in this process, say by a policy, joins the log."""
    ours = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return ours


async def open_stream(fd: int) -> asyncio.StreamWriter:
    """Return a pipe as a stream that never blocks the event loop."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop=loop), os.fdopen(fd, "wb", buffering=0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)
