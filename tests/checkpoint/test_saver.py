"""What the saver does for trainers that are gone, and for those who come after them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoint.writing import part_of, pieces_of
from tlaunch.checkpoint.arena import Arena, aligned
from tlaunch.checkpoint.catalog import committed
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.generations import take_generation
from tlaunch.checkpoint.home import listen, note_started, start_saver
from tlaunch.checkpoint.layout import Address
from tlaunch.checkpoint.link import settle
from tlaunch.checkpoint.messages import receive, send
from tlaunch.checkpoint.plan import boxes_to_bytes, plan_to_bytes
from tlaunch.checkpoint.shard import arrange

WITHIN = 30.0


@dataclass
class Saver:
    """A saver with a lifeline; ``held`` is the other end."""

    path: str
    process: subprocess.Popen[bytes]
    held: int

    def connect(self) -> socket.socket:
        """Connect as a trainer does."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(WITHIN)
        sock.connect(self.path)
        assert receive(sock) is not None
        return sock

    def let_go(self) -> None:
        os.close(self.held)
        self.held = -1


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    """One that may take two seconds to finish."""
    path = str(tmp_path / "socket")
    lifeline, held = os.pipe2(os.O_CLOEXEC)
    with listen(path) as listener:
        note_started(path)
        process = start_saver(listener, f"--lifeline-fd={lifeline}", "--within=2", fds=[lifeline])
    os.close(lifeline)
    saver = Saver(path, process, held)
    yield saver
    if saver.held >= 0:
        saver.let_go()
    process.send_signal(signal.SIGCONT)
    process.wait(WITHIN)
    Path(path).unlink()


def order(sock: socket.socket, files: LocalFiles, address: Address, rank: int) -> None:
    """Order a step to be saved, as the trainer of a rank does."""
    send(sock, {"do": "open", "root": files.root, "last": 0, "every": 0})
    layout = arrange(pieces_of(address, rank))
    shard = layout.header + b"".join(bytes(piece.data) for piece, _ in layout.boxes)
    plan = plan_to_bytes(part_of(address, rank), boxes_to_bytes(layout.boxes))
    begin = aligned(len(shard))
    arena = Arena.make(begin + len(plan))
    arena.view[: len(shard)] = shard
    arena.view[begin : begin + len(plan)] = plan
    send(sock, {"do": "arena", "index": 0, "size": arena.size}, arena.fd)
    where = {"arena": 0, "shard_size": len(shard), "plan": begin, "plan_size": len(plan)}
    send(sock, {"do": "save", "step": address.step, **where})
    arena.close()


def test_the_last_orders_of_the_dead_are_heard_though_they_have_not_read_our_answers() -> None:
    trainer, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        send(trainer, {"do": "one"})
        send(trainer, {"do": "two"})
        send(ours, {"did": "nobody reads this"})
        trainer.close()
        heard = []
        while (received := receive(ours)) is not None:
            heard.append(received[0].at("do").text())
        assert heard == ["one", "two"]


def test_who_does_not_read_holds_nobody_up() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def say_much() -> None:
        for step in range(100_000):
            send(here, {"do": "absent", "step": step})

    with here, there, pytest.raises(BlockingIOError):
        say_much()


def test_who_comes_next_waits_until_the_orders_of_the_dead_are_done(saver: Saver, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "ck")
    address = Address(take_generation(files, {}), 10)
    ranks = [saver.connect() for _ in range(2)]
    saver.process.send_signal(signal.SIGSTOP)
    for rank, sock in enumerate(ranks):
        order(sock, files, address, rank)
        sock.close()
    saver.process.send_signal(signal.SIGCONT)
    settle(saver.path, files.root)
    names = files.names(address.folder)
    assert {"rank-00000.json", "rank-00001.json"} <= set(names) or "manifest.json" in names


def test_a_trainer_that_lives_is_not_waited_for(saver: Saver, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "ck")
    take_generation(files, {})
    with saver.connect() as living:
        send(living, {"do": "open", "root": files.root, "last": 0, "every": 0})
        started = time.monotonic()
        settle(saver.path, files.root)
        assert time.monotonic() - started < WITHIN


def test_who_asks_a_saver_that_does_not_answer_goes_on(
    saver: Saver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tlaunch.checkpoint.link.SETTLE", 0.1)
    saver.process.send_signal(signal.SIGSTOP)
    settle(saver.path, "/nowhere")
    assert "does not tell what it still writes" in caplog.text


def test_when_the_lifeline_is_let_go_what_was_ordered_is_done_and_the_saver_ends(saver: Saver, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "ck")
    address = Address(take_generation(files, {}), 10)
    with saver.connect() as one, saver.connect() as other:  # they live on, as a rank may that cannot be killed
        saver.process.send_signal(signal.SIGSTOP)
        order(one, files, address, 0)
        order(other, files, address, 1)
        saver.let_go()
        saver.process.send_signal(signal.SIGCONT)
        assert saver.process.wait(WITHIN) == 0
    assert committed(files) == [address]


def test_a_part_that_never_comes_does_not_hold_the_end_up(saver: Saver, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "ck")
    address = Address(take_generation(files, {}), 10)
    with saver.connect() as one:
        order(one, files, address, 0)
        while (received := receive(one)) is not None:
            if received[0].at("did").text() == "written":
                break
        saver.let_go()
        assert saver.process.wait(WITHIN) == 0, "1 when its time was over"
    assert committed(files) == []


def test_it_runs_with_low_priority(saver: Saver) -> None:
    saver.connect().close()
    assert os.getpriority(os.PRIO_PROCESS, saver.process.pid) == 19
    assert "torch" not in Path(f"/proc/{saver.process.pid}/maps").read_text()
