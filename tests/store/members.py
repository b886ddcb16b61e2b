"""Real etcd members that tests may kill, stop and move about."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tlaunch.launcher.process.lifeline import Lifeline
from tlaunch.launcher.store.embedded import find_etcd
from tlaunch.launcher.store.endpoints import Endpoints

DEADLINE = 20.0


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = [20_000 + 1_500 * (_WORKER % 8) + (os.getpid() + number) % 1_500 for number in range(1_500)]
_untried = itertools.cycle(_PORTS)


def free_ports(count: int) -> list[int]:
    """Ports that stay free until a member takes them, and while it is down.

    They lie below those that the kernel gives away by itself, and no two workers of a test run draw from the same ones.
    """
    return list(itertools.islice(filter(_is_free, _untried), count))


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Member:
    """One etcd process, which can be started again on the same data."""

    def __init__(self, name: str, folder: Path, listen: Sequence[str], peer: str, flags: Sequence[str]) -> None:
        self.name = name
        self.urls = tuple(listen)
        self.host = listen[0].rpartition("/")[2]
        self.peer = peer
        self._data = folder / name
        self._log = folder / f"{name}.log"
        self._command = [
            str(find_etcd()),
            *("--name", name, "--data-dir", str(self._data)),
            *("--listen-client-urls", ",".join(listen), "--advertise-client-urls", ",".join(listen)),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--unsafe-no-fsync", "--logger", "zap", "--log-level", "error"),
            *flags,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: Lifeline | None = None
        self._stopped = False

    @property
    def running(self) -> bool:
        return self._process is not None and not self._stopped

    def start(self) -> None:
        """Start it, unless it runs, and let it go on if it was stopped."""
        if self._process is None:
            self._lifeline = Lifeline()
            with self._log.open("ab") as log:
                self._process = subprocess.Popen[bytes](
                    self._command, stdout=log, stderr=log, **self._lifeline.popen_kwargs()
                )
            self._lifeline.guard(self._process.pid)
        elif self._stopped:
            self.go_on()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._lifeline is not None:
            self._process.kill()
            self._process.wait()
            self._lifeline.close()
            self._process = None
            self._stopped = False

    def lose(self) -> None:
        """SIGKILL, and its data is gone."""
        self.kill()
        shutil.rmtree(self._data)

    def stop(self) -> None:
        """SIGSTOP: its sockets stay open, but nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)
        self._stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._stopped = False


class Members:
    """A cluster of as many members as there are ``names``; a context manager that ends with all of them gone."""

    def __init__(self, folder: Path, names: Sequence[str] = ("a", "b", "c"), flags: Sequence[str] = ()) -> None:
        ports = free_ports(2 * len(names))
        peers = {name: f"http://127.0.0.1:{port}" for name, port in zip(names, ports[len(names) :], strict=True)}
        initial = ",".join(f"{name}={peer}" for name, peer in peers.items())
        self.members = [
            Member(name, folder, [f"http://127.0.0.1:{port}"], peers[name], ("--initial-cluster", initial, *flags))
            for name, port in zip(names, ports, strict=False)
        ]

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(tuple(member.host for member in self.members))

    def at(self, host: str) -> Member:
        """The member that listens at ``host:port``."""
        return next(member for member in self.members if member.host == host)

    def others(self, than: Member) -> list[Member]:
        return [member for member in self.members if member is not than]

    def leader(self) -> Member:
        """The member that leads, as seen by those that run."""
        running = [member for member in self.members if member.running]
        for status in json.loads(ctl(running, "endpoint", "status", "-w", "json")):
            if status["Status"]["header"]["member_id"] == status["Status"]["leader"]:
                return self.at(status["Endpoint"])
        raise AssertionError("no running member leads")

    def move_leader(self, to: Member) -> None:
        """Make this member the leader, unless it is."""
        leader = self.leader()
        if leader is not to:
            found: Any = json.loads(ctl([to], "endpoint", "status", "-w", "json"))
            ctl([leader], "move-leader", f"{found[0]['Status']['header']['member_id']:x}")

    def heal(self) -> None:
        """Let every member run, and wait until each of them answers with a quorum behind it."""
        for member in self.members:
            member.start()
        until_healthy(self.members)

    def __enter__(self) -> Self:
        for member in self.members:
            member.start()
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()


def ctl(members: Sequence[Member], *command: str) -> str:
    """Run etcdctl against the first client address of each member and return what it prints."""
    program = find_etcd().with_name("etcdctl")
    env = {**{name: value for name, value in os.environ.items() if not name.startswith("ETCD")}, "ETCDCTL_API": "3"}
    hosts = ",".join(member.host for member in members)
    done = subprocess.run(
        [program, "--endpoints", hosts, "--dial-timeout", "2s", "--command-timeout", "2s", *command],
        env=env,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    return done.stdout


def until_healthy(members: Sequence[Member]) -> None:
    """Wait until each member answers with a quorum behind it."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            ctl(members, "endpoint", "health")
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
        else:
            return


@contextlib.contextmanager
def single(folder: Path, *, listen: Sequence[str] | None = None, flags: Sequence[str] = ()) -> Iterator[Member]:
    """One member alone, listening at the given URLs."""
    ports = free_ports(2)
    peer = f"http://127.0.0.1:{ports[0]}"
    listen = listen or [f"http://127.0.0.1:{ports[1]}"]
    member = Member("single", folder, listen, peer, ("--initial-cluster", f"single={peer}", *flags))
    member.start()
    try:
        yield member
    finally:
        member.kill()
