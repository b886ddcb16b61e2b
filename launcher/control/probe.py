"""Asking an agent directly whether it is there.

A lost node is noticed by its lease at the latest. When ranks elsewhere fail, their node may be the victim of another
one that is gone: then the operating system of a dead agent's host refuses the connection at once, and the controller
need not wait.

An agent that answers also says what its monotonic clock shows. Nobody sets that clock, so that the times at which ranks
failed on different nodes can be compared, to within half of the time that the question took.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from tlaunch.launcher.control.records import Registration

GREETING_LIMIT = 256

AT_ONCE = 256
"""How many agents are asked at the same time: each takes a file descriptor, of which there are 1024 by default."""


class Verdict(Enum):
    """``GONE`` is certain: nobody listens there, or another incarnation does. ``SILENT`` is not."""

    ALIVE = "alive"
    GONE = "gone"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking one agent. ``clock``: what to add to its monotonic time to have ours, in seconds."""

    verdict: Verdict
    clock: float | None = None


class Listener:
    """The agent's side: greets whoever connects with the agent's incarnation and its monotonic time, and closes."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self._server: asyncio.Server | None = None

    async def open(self, host: str) -> str:
        """Listen on a free port of ``host`` and return ``host:port``."""
        self._server = await asyncio.start_server(self._greet, host, 0)
        address, port = self._server.sockets[0].getsockname()[:2]
        return f"{address}:{port}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _greet(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(f"{self.incarnation} {time.monotonic():.6f}\n".encode())
            await writer.drain()
        except ConnectionError:
            pass  # The caller has lost its patience; it draws its own conclusion.
        finally:
            writer.close()


async def probe(registration: Registration, timeout: float) -> Answer:
    """Ask one agent. Takes ``timeout`` seconds at most."""
    host, _, port = registration.address.rpartition(":")
    asked = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            greeting = await _greeting(host, int(port))
    except (ConnectionRefusedError, ConnectionResetError):
        return Answer(Verdict.GONE)
    except (OSError, TimeoutError, ValueError):
        return Answer(Verdict.SILENT)
    if not greeting:
        return Answer(Verdict.SILENT)
    incarnation, _, clock = greeting.decode(errors="replace").strip().partition(" ")
    if incarnation != registration.incarnation:
        return Answer(Verdict.GONE)
    try:
        return Answer(Verdict.ALIVE, (asked + time.monotonic()) / 2 - float(clock))
    except ValueError:  # another version of this program
        return Answer(Verdict.ALIVE)


async def probe_all(
    registrations: Iterable[Registration], timeout: float, at_once: int = AT_ONCE
) -> Mapping[str, Answer]:
    """Ask many agents; the answers by node. Each has ``timeout`` seconds, and all together have twice as long.

    When ``at_once`` agents are silent all that time, others may not be asked. They count as silent as well.
    """
    asked = tuple(registrations)
    answers = {registration.node.name: Answer(Verdict.SILENT) for registration in asked}
    waiting = iter(asked)  # which all those below share

    async def ask_on() -> None:
        for registration in waiting:
            answers[registration.node.name] = await probe(registration, timeout)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * timeout), asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(asked))):
                group.create_task(ask_on())
    return answers


async def _greeting(host: str, port: int) -> bytes:
    """Return what the agent says. Without the comfort of streams, which would cost more than all else."""
    loop = asyncio.get_running_loop()
    said = b""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, (host, port))
        while not said.endswith(b"\n") and len(said) < GREETING_LIMIT:
            more = await loop.sock_recv(connection, GREETING_LIMIT)
            if not more:
                break
            said += more
    return said
