"""The saver: one process for each node that checks, writes and commits what trainers have copied into their arenas.

    python -m tlaunch.checkpoint.saver --listen-fd=FD ...

It shares no interpreter lock with training, loads no torch, runs with low priority, and goes on when a trainer dies:
what was captured completely is written and committed, anything else is forgotten.

Without a lifeline it ends when every trainer has left and nothing is left to do. With one it stays for trainers that
are still to come, until whoever holds the other end lets go or dies; then it does what is left, within a deadline.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path

from tlaunch.checkpoint.absence import give_up
from tlaunch.checkpoint.arena import Arena
from tlaunch.checkpoint.catalog import Keep, prune
from tlaunch.checkpoint.commit import withdraw, write_shard
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

    def __init__(self, sock: socket.socket, saver: Saver) -> None:
        super().__init__(name="trainer", daemon=True)
        self._sock = sock
        self._saver = saver
        self._sending = threading.Lock()
        self._arenas: dict[int, Arena] = {}
        self._files: Files | None = None
        self._keep: Keep | None = None
        self.said_goodbye = False
        self.failed = False
        """Whether we have left the trainer, and not it us: it may come again."""

    def run(self) -> None:
        try:
            send(self._sock, {"did": "greet"})
            while (received := receive(self._sock)) is not None:
                self._do(*received)
        except Exception as error:
            log.exception("a trainer is served no longer")
            self.failed = not isinstance(error, ConnectionError)
        finally:
            try:
                for arena in self._arenas.values():
                    arena.close()
            finally:
                self._sock.close()
                self._saver.on_left(self)

    @property
    def root(self) -> str | None:
        """Where it saves to; ``None`` when it has not said so yet."""
        return None if self._files is None else self._files.root

    def is_gone(self) -> bool:
        """Whether the trainer has closed its side or died, though we may still be at work for it."""
        poll = select.poll()
        try:
            poll.register(self._sock, 0)
        except ValueError:  # closed on our side too
            return True
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def drain(self) -> None:
        """Do what was ordered so far, and nothing more."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

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
            case "commit":  # written by a saver that has died since
                address = Address(message.at("generation").number(), message.at("step").number())
                self._commit(address, message.at("world").number(), message.at("rank").number())
            case "settle":
                self._saver.settle(message.at("root").text())
                with contextlib.suppress(OSError):  # it has lost its patience
                    send(self._sock, {"did": "settle"})
                self.said_goodbye = True
            case "leave":
                self.said_goodbye = True
            case other:
                raise CheckpointError(f"a trainer asks for {other!r}")

    def _save(self, message: Node) -> None:
        index, step = message.at("arena").number(), message.at("step").number()
        assert self._files is not None
        files = self._files
        view = self._arenas[index].view
        begin, size = message.at("plan").number(), message.at("plan_size").number()
        plan = Plan.from_bytes(bytes(view[begin : begin + size]))
        address, (rank,), world = Address(plan.part.generation, step), plan.part.ranks, plan.part.world
        try:
            write_shard(files, plan.part, described(plan.boxes), view[: message.at("shard_size").number()])
        except Exception as error:  # noqa: BLE001 - file systems of every kind; whoever holds the future is to know
            if not isinstance(error, GivenUp | Superseded):
                _give_up(files, address, rank, _told(error), alone=world == 1)
            self._answer(_outcome(error), step, index, error)
            return
        self._answer("written", step, index)
        self._commit(address, world, rank)

    def _commit(self, address: Address, world: int, rank: int) -> None:
        """Commit a checkpoint, of which our part is written, when all parts are there."""
        assert self._files is not None
        files, keep = self._files, self._keep

        def ended(error: CheckpointError | None) -> None:
            if error is None and keep is not None:
                _prune(files, keep)
            self._answer(_outcome(error), address.step, None, error)

        self._saver.commits.add(files, address, world, rank, ended)

    def _give_up(self, message: Node) -> None:
        assert self._files is not None
        address = Address(message.at("generation").number(), message.at("step").number())
        _give_up(self._files, address, message.at("rank").number(), message.at("reason").text(), alone=False)

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


def _give_up(files: Files, address: Address, rank: int, reason: str, *, alone: bool) -> None:
    """Remove what this rank has written of a step, which takes room, and let others know if there are any."""
    try:
        if alone or give_up(files, address, rank, reason):
            withdraw(files, address, rank)
    except Exception as error:  # noqa: BLE001 - the others wait in vain, for as long as they wait for anybody
        log.warning("%s", error)


def _prune(files: Files, keep: Keep) -> None:
    try:
        for address in prune(files, keep):
            log.info("removed step %d", address.step)
    except Exception as error:  # noqa: BLE001 - file systems of every kind; what is kept too long does no harm
        log.warning("old checkpoints stay until the next commit: %s", _told(error))


class Saver:
    """Accepts trainers on ``listener``. ``lifeline``: the read end of a pipe, see above."""

    def __init__(self, listener: socket.socket, lifeline: int | None) -> None:
        self._listener = listener
        self._lifeline = lifeline
        self.commits = Commits()
        self._trainers: set[Trainer] = set()
        self.abandoned = False
        """Whether a trainer has gone without a word."""
        self.failed = False
        """Whether one could not be served any longer."""
        self._lock = threading.Lock()
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)[::-1]

    def serve(self) -> None:
        """Serve trainers until nobody is left, or the lifeline says that nobody will come any more."""
        self._listener.setblocking(False)
        watched = [self._listener.fileno(), self._woken]
        patience: float | None = FIRST_TRAINER
        if self._lifeline is not None:
            watched.append(self._lifeline)
            patience = None
        while True:
            ready, _, _ = select.select(watched, [], [], patience)
            if self._lifeline in ready:
                return
            if self._listener.fileno() in ready:
                self._accept()
                patience = None
                continue
            if self._woken in ready:
                os.read(self._woken, 4096)
            if self._lifeline is None and not self._all():
                return

    def finish(self) -> None:
        """Write and commit what was captured, for trainers that are gone or are not to give more."""
        for trainer in self._all():
            trainer.drain()
        for trainer in self._all():
            trainer.join()
        self.commits.finish()

    def settle(self, root: str) -> None:
        """Write what trainers that are gone have ordered for ``root``."""
        for trainer in self._all():
            if trainer.root in (root, None) and trainer.is_gone():
                trainer.join()

    def on_left(self, trainer: Trainer) -> None:
        """Forget a trainer that is served no longer."""
        with self._lock:
            self._trainers.discard(trainer)
            self.abandoned |= not trainer.said_goodbye and not trainer.failed
            self.failed |= trainer.failed
        with contextlib.suppress(BlockingIOError):  # it is awake already
            os.write(self._wake, b"x")

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        sock.setblocking(True)
        trainer = Trainer(sock, self)
        with self._lock:
            self._trainers.add(trainer)
        trainer.start()

    def _all(self) -> list[Trainer]:
        with self._lock:
            return list(self._trainers)


def main() -> None:
    """Run a saver."""
    parser = argparse.ArgumentParser(prog="tlaunch-saver", allow_abbrev=False)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--tidy", type=Path, help="the socket's path, for when all who would have removed it are dead")
    parser.add_argument("--lifeline-fd", type=int)
    parser.add_argument("--within", type=float, help="seconds that the end may take")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    # Ctrl-C and the end of a terminal are for the trainers, which let go of their sockets then.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    saver = Saver(socket.socket(fileno=given.listen_fd), given.lifeline_fd)
    saver.serve()
    if given.within is not None:
        _end_within(given.within)
    saver.finish()
    if saver.abandoned and given.tidy is not None:
        # Whoever would have tidied up was killed.
        given.tidy.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            given.tidy.parent.rmdir()
    if saver.failed and given.lifeline_fd is None:
        sys.exit(1)  # whoever keeps us starts another one, for a trainer that may be waiting for it already


def _end_within(seconds: float) -> None:
    def give_up() -> None:
        log.error("not everything that was captured could be written within %g s; the rest is given up", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
