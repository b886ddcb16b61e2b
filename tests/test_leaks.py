"""The leak check itself: it names what was left behind, and waits for what is just about to go."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest

from tests.support.leaks import MARK, Holdings, Run

SOON = 0.1  # seconds: for what will not go by itself

DAEMON = """
import mmap, os, sys
if os.fork():
    os._exit(0)
os.setsid()
if sys.argv[1:]:
    with open(sys.argv[1], "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def before(test_run: Run) -> Holdings:
    return test_run.take()


def test_nothing_new_is_no_leak(test_run: Run, before: Holdings) -> None:
    assert test_run.leaked(before) == []


def test_a_running_child_is_named(test_run: Run, before: Holdings) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        left = test_run.leaked(before, SOON)
    assert f"process {child.pid} still runs: {sys.executable} -c input()" in left
    assert test_run.leaked(before) == []


def test_a_child_that_nobody_waits_for_is_named(test_run: Run, before: Holdings) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    left = test_run.leaked(before, SOON)
    child.wait()
    assert len(left) == 1
    assert f"process {child.pid} has ended, and nobody waited for it" in left[0]


@contextmanager
def daemon(*arguments: str, marked: bool = True) -> Iterator[psutil.Process]:
    """A process that has left its parent, and ends with this block."""
    environment = {name: value for name, value in os.environ.items() if marked or name != MARK}
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline()))
        parent.wait()
        yield process
        parent.stdin.close()
        assert parent.stdout.read() == ""  # the end of the file is the daemon's end


def test_a_daemon_that_left_its_parent_is_named(test_run: Run, before: Holdings) -> None:
    with daemon() as process:
        assert any(f"process {process.pid} still runs" in line for line in test_run.leaked(before, SOON))


def test_a_thread_is_named(test_run: Run, before: Holdings) -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="forgotten")
    thread.start()
    left = test_run.leaked(before, SOON)
    go.set()
    thread.join()
    assert left == ["thread 'forgotten'"]


def test_what_ends_in_time_is_no_leak(test_run: Run, before: Holdings) -> None:
    timer = threading.Timer(0.2, lambda: None)
    timer.start()
    assert test_run.leaked(before) == []


def test_a_file_descriptor_is_named(test_run: Run, before: Holdings, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        left = test_run.leaked(before, SOON)
        assert left == [f"file descriptor {file.fileno()} -> {tmp_path / 'open'}"]


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    memory = SharedMemory(name=f"tl-{uuid.uuid4().hex}", create=True, size=16)
    yield memory
    memory.close()
    memory.unlink()


def test_shared_memory_is_named(test_run: Run, before: Holdings, segment: SharedMemory) -> None:
    assert f"shared memory /dev/shm/{segment.name}" in test_run.leaked(before, SOON)


def test_shared_memory_of_other_programs_is_not_ours(test_run: Run, segment: SharedMemory) -> None:
    path = f"/dev/shm/{segment.name}"
    taken = test_run.take()
    before = replace(taken, shared_memory={key: text for key, text in taken.shared_memory.items() if str(key) != path})
    segment.close()
    assert test_run.leaked(before, SOON) == [f"shared memory {path}"]
    with daemon(path, marked=False):
        assert not any(path in line for line in test_run.leaked(before, SOON))


def test_a_socket_is_named(test_run: Run, before: Holdings) -> None:
    path = test_run.temporary / "s"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
    left = test_run.leaked(before, SOON)
    path.unlink()
    assert left == [f"socket {path}"]


def test_a_private_directory_is_named(test_run: Run, before: Holdings) -> None:
    path = test_run.temporary / "tlaunch-x"
    path.mkdir()
    left = test_run.leaked(before, SOON)
    path.rmdir()
    assert left == [f"directory {path}"]
