"""The saver: one process for each node that checks, writes and commits what trainers have copied into their arenas.

    python -m tlaunch.checkpoint.saver LISTENING_FD SOCKET

It shares no interpreter lock with training, loads no torch, runs with low priority, and goes on when a trainer dies:
what was captured completely is written and committed, anything else is forgotten. It ends when every trainer has left
and nothing is left to do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tlaunch.checkpoint.absence import give_up
from tlaunch.checkpoint.arena import Arena
from tlaunch.checkpoint.catalog import Keep, prune
from tlaunch.checkpoint.commit import write_shard
from tlaunch.checkpoint.commits import Commits
from tlaunch.checkpoint.errors import CheckpointError, GivenUp, Superseded
from tlaunch.checkpoint.files import Files
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.messages import Message, receive, send
from tlaunch.checkpoint.places import open_files
from tlaunch.checkpoint.plan import Plan
from tlaunch.checkpoint.shard import described
from tlaunch.checkpoint.tree import Node

log = logging.getLogger(__name__)

FIRST_TRAINER = 60.0
"""Seconds within which the first trainer must have come."""

NICENESS = 19
"""The lowest there is, for the disk too: Linux derives its priority for reading and writing from this one."""


class Trainer(threading.Thread):
    """Serves one trainer: one thread, which does what the trainer asks in the order in which it asks."""

    def __init__(self, sock: socket.socket, commits: Commits, left: Callable[[Trainer], None]) -> None:
        super().__init__(name="trainer", daemon=True)
        self._sock = sock
        self._commits = commits
        self._left = left
        self._sending = threading.Lock()
        self._arenas: dict[int, Arena] = {}
        self._files: Files | None = None
        self._keep: Keep | None = None
        self.said_goodbye = False

    def run(self) -> None:
        try:
            send(self._sock, {"did": "greet"})
            while (received := receive(self._sock)) is not None:
                self._do(*received)
        except (CheckpointError, OSError):
            log.exception("a trainer is served no longer")
        finally:
            try:
                for arena in self._arenas.values():
                    arena.close()
            finally:
                self._sock.close()
                self._left(self)

    def _do(self, message: Node, fd: int | None) -> None:
        match message.at("do").text():
            case "open":
                self._files = open_files(message.at("root").text())
                if message.at("last").number():  # one rank of all removes what is not kept
                    self._keep = Keep(message.at("last").number(), message.at("every").number())
            case "arena" if fd is not None:
                index = message.at("index").number()
                old = self._arenas.pop(index, None)
                if old is not None:
                    old.close()
                self._arenas[index] = Arena(fd, message.at("size").number())
            case "save":
                self._save(message)
            case "absent":
                self._give_up(message)
            case "leave":
                self.said_goodbye = True
            case other:
                raise CheckpointError(f"a trainer asks for {other!r}")

    def _save(self, message: Node) -> None:
        index, step = message.at("arena").number(), message.at("step").number()
        assert self._files is not None
        files, keep = self._files, self._keep
        view = self._arenas[index].view
        begin, size = message.at("plan").number(), message.at("plan_size").number()
        plan = Plan.from_bytes(bytes(view[begin : begin + size]))
        address, (rank,), world = Address(plan.part.generation, step), plan.part.ranks, plan.part.world
        try:
            write_shard(files, plan.part, described(plan.boxes), view[: message.at("shard_size").number()])
        except Exception as error:  # noqa: BLE001 - file systems of every kind; whoever holds the future is to know
            self._answer(_outcome(error), step, index, error)
            if world > 1 and not isinstance(error, GivenUp | Superseded):
                _give_up(files, address, rank, _told(error))
            return
        self._answer("written", step, index)

        def ended(error: CheckpointError | None) -> None:
            if error is None and keep is not None:
                _prune(files, keep)
            self._answer(_outcome(error), step, None, error)

        self._commits.add(files, address, world, rank, ended)

    def _give_up(self, message: Node) -> None:
        assert self._files is not None
        address = Address(message.at("generation").number(), message.at("step").number())
        _give_up(self._files, address, message.at("rank").number(), message.at("reason").text())

    def _answer(self, did: str, step: int, arena: int | None, error: Exception | None = None) -> None:
        """Tell the trainer, if it still lives. ``arena``: it may be filled again."""
        superseded = isinstance(error, Superseded)
        said: Message = {"did": did, "step": step, "arena": arena, "error": _told(error), "superseded": superseded}
        with self._sending:
            try:
                send(self._sock, said)
            except OSError:
                log.info("a trainer is gone; it would have been told: %s", said)


def _told(error: Exception | None) -> str:
    return str(error or "") if error is None or isinstance(error, CheckpointError) else repr(error)


def _outcome(error: Exception | None) -> str:
    if error is None:
        return "committed"
    return "skipped" if isinstance(error, GivenUp) and error.skipped else "failed"


def _give_up(files: Files, address: Address, rank: int, reason: str) -> None:
    try:
        give_up(files, address, rank, reason)
    except Exception as error:  # noqa: BLE001 - the others wait in vain, for as long as they wait for anybody
        log.warning("%s", error)


def _prune(files: Files, keep: Keep) -> None:
    try:
        for address in prune(files, keep):
            log.info("removed step %d", address.step)
    except CheckpointError as error:
        # What is kept too long does no harm; the next commit tries again.
        log.warning("%s", error)


class Saver:
    """Accepts trainers until all have left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._commits = Commits()
        self._trainers: set[Trainer] = set()
        self.abandoned = False
        """Whether a trainer has gone without a word."""
        self._lock = threading.Lock()
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)[::-1]

    def run(self) -> None:
        """Serve trainers. Returns when the last one has left and all that they had captured is settled."""
        self._listener.setblocking(False)
        patience: float | None = FIRST_TRAINER
        while True:
            ready, _, _ = select.select([self._listener.fileno(), self._woken], [], [], patience)
            if self._listener.fileno() in ready:
                self._accept()
                patience = None
                continue
            if self._woken in ready:
                os.read(self._woken, 4096)
            with self._lock:
                if not self._trainers:
                    break
        self._commits.finish()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        sock.setblocking(True)
        trainer = Trainer(sock, self._commits, self._on_left)
        with self._lock:
            self._trainers.add(trainer)
        trainer.start()

    def _on_left(self, trainer: Trainer) -> None:
        with self._lock:
            self._trainers.discard(trainer)
            self.abandoned |= not trainer.said_goodbye
        os.write(self._wake, b"x")


def main() -> None:
    """Run the saver on a listening socket, given by its descriptor and its path."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    # Ctrl-C and the end of a terminal are for the trainers, which let go of their sockets then.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    saver = Saver(socket.socket(fileno=int(sys.argv[1])))
    saver.run()
    if saver.abandoned:
        # Whoever would have tidied up was killed.
        Path(sys.argv[2]).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(sys.argv[2]).parent.rmdir()


if __name__ == "__main__":
    main()
