"""What workers print: into a file for each rank, and from there, line by line, to the agent's standard output.

The worker writes to its file itself, so that nothing is lost when the agent dies and no reader can hold it up. The
agent follows the files; that is the one place with a short pause between looks, and it is not on any recovery path.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from typing import Literal

Stream = Literal["out", "err"]

PAUSE = 0.1
CHUNK = 1 << 16
LONGEST_LINE = 8192


@dataclass(slots=True)
class Followed:
    """One file that grows. ``last``: nothing will be written any more once the end is reached."""

    rank: int
    stream: Stream
    fd: int
    rest: bytes = b""
    last: bool = False

    def lines(self) -> list[str]:
        """Return the lines of the next chunk.

        One that has no end yet waits for it, unless the file is finished or the line is too long.
        """
        chunk = os.read(self.fd, CHUNK)
        self.rest += chunk
        *whole, self.rest = self.rest.split(b"\n")
        if self.rest and ((self.last and not chunk) or len(self.rest) > LONGEST_LINE):
            whole.append(self.rest)
            self.rest = b""
        return [line[:LONGEST_LINE].decode(errors="replace").rstrip("\r") for line in whole]


@dataclass
class Output:
    """Follows the files of this node's ranks and writes each line as a JSON object to ``write``."""

    writer: asyncio.StreamWriter
    _files: list[Followed] = field(default_factory=list)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def follow(self, rank: int, stream: Stream, path: str) -> None:
        """Start to follow a file from its beginning; it is created if need be."""
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._files.append(Followed(rank, stream, fd))

    def finish(self, rank: int) -> None:
        """The rank's process has ended: what stands in its files is all."""
        for file in self._files:
            if file.rank == rank:
                file.last = True

    async def run(self) -> None:
        """Copy until cancelled; ``drain`` does the rest."""
        while True:
            if not await self._copy():
                await asyncio.sleep(PAUSE)

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
                self.writer.write(json.dumps({"rank": file.rank, "stream": file.stream, "text": line}).encode() + b"\n")
            if file.last and not moved:
                os.close(file.fd)
                self._files.remove(file)
            if lines:
                await self.writer.drain()
        return busy


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
