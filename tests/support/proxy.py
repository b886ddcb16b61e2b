"""A TCP relay before a server, to slow it down, to cut single clients off, and to stop them in the middle of a request.

It needs no rights and no network of its own: clients on this machine are told apart by the pid that owns the other end
of a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self, TypeVar

import psutil

T = TypeVar("T")

WITHIN = 60.0
"""Seconds until what a test waits for counts as never happening."""


@dataclass(eq=False)
class Catch:
    """Waits for a client that sends certain words, and holds its connection then."""

    words: bytes
    answered: bool
    proxy: Proxy
    _connection: Future[_Connection] = field(default_factory=Future)

    def pid(self) -> int:
        """Wait until somebody was caught, and return who."""
        return _owner(self._connection.result(WITHIN).port)

    def release(self) -> None:
        """Let everything go on as if nothing had been."""
        connection = self._connection.result(WITHIN)
        self.proxy.do(connection.go_on)

    def drop(self) -> None:
        """Forget what was held, and end the connection."""
        connection = self._connection.result(WITHIN)
        self.proxy.do(connection.abort)

    def caught(self, connection: _Connection) -> None:
        """For the proxy to call."""
        self._connection.set_result(connection)


class Proxy:
    """Relays to ``target`` (``host:port``) from ``host``; a context manager. ``delay``: seconds in each direction."""

    def __init__(self, target: str, delay: float = 0.0) -> None:
        self.host = ""
        self.delay = delay
        self.catches: list[Catch] = []
        self._target = target
        self._cut: set[int] = set()
        self._connections: set[_Connection] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(WITHIN)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def cut(self, pid: int) -> None:
        """Let nothing of one client pass any more, in either direction, without telling it."""

        def cut() -> None:
            self._cut.add(pid)
            for connection in self._connections:
                if _owner(connection.port) == pid:
                    connection.hold()

        self.do(cut)

    def heal(self) -> None:
        """Let everything pass again, what was held first."""

        def heal() -> None:
            self._cut.clear()
            for connection in self._connections:
                connection.go_on()

        self.do(heal)

    def catch(self, words: bytes, *, answered: bool = False) -> Catch:
        """Hold the connection of the next client that sends ``words``, before they reach the server.

        ``answered``: only what the server says from then on is held; it gets the words and acts on them.
        """
        catch = Catch(words, answered, self)
        self.do(lambda: self.catches.append(catch))
        return catch

    def do(self, what: Callable[[], T]) -> T:
        """Have something done in the proxy's own thread."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(what())
            except Exception as error:  # noqa: BLE001 - for the caller
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(WITHIN)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        address, port = server.sockets[0].getsockname()[:2]
        self.host = f"{address}:{port}"
        self._started.set()
        await self._ended.wait()
        server.close()
        for connection in self._connections:
            connection.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close their sockets

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("peername")[1]
        host, _, target = self._target.rpartition(":")
        try:
            server_reader, server_writer = await asyncio.open_connection(host, int(target))
        except OSError:  # nobody listens there
            writer.transport.abort()
            return
        connection = _Connection(self, port, writer, server_writer)
        if self._cut and _owner(port) in self._cut:
            connection.hold()
        self._connections.add(connection)
        # Streams complain of a handler that ends as cancelled: here that is how it ends when the proxy does.
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await asyncio.gather(
                    connection.relay(reader, server_writer, connection.there, listen=True),
                    connection.relay(server_reader, writer, connection.back, listen=False),
                )
            finally:
                self._connections.discard(connection)
                connection.abort()


class _Connection:
    """One client's connection. ``there`` and ``back`` are gates, open when set. ``port``: the client's."""

    def __init__(self, proxy: Proxy, port: int, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.port = port
        self.there = asyncio.Event()
        self.back = asyncio.Event()
        self.go_on()
        self._proxy = proxy
        self._writers = (client, server)
        self._heard = b""

    def hold(self) -> None:
        self.there.clear()
        self.back.clear()

    def go_on(self) -> None:
        self.there.set()
        self.back.set()

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event, *, listen: bool
    ) -> None:
        """Pass on what comes, each piece when it is due and the gate is open."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def take() -> None:
            piece = b"-"
            while piece:
                try:
                    piece = await reader.read(1 << 16)
                except OSError:
                    piece = b""
                if listen:
                    self._listen(piece)
                pieces.put_nowait((time.monotonic() + self._proxy.delay, piece))

        async def give() -> None:
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(due - time.monotonic())
                await gate.wait()
                if not piece:
                    self.abort()  # nobody here uses half a connection
                    return
                writer.write(piece)
                with contextlib.suppress(OSError):
                    await writer.drain()

        await asyncio.gather(take(), give())

    def _listen(self, piece: bytes) -> None:
        self._heard = self._heard[-100:] + piece
        for catch in tuple(self._proxy.catches):
            if catch.words in self._heard:
                self._proxy.catches.remove(catch)
                (self.back if catch.answered else self.there).clear()
                catch.caught(self)


def _owner(port: int) -> int:
    """Return the pid of the process that has this port at its end of a connection to us; 0 when it has gone.

    grpc's sockets are of IPv6, whatever address they are connected to.
    """
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port == port and connection.pid is not None:
            return int(connection.pid)
    return 0
