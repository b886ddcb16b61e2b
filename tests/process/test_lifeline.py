"""The kernel kills a guarded group as soon as its holder is gone, in whatever way that happens."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap

import pytest

from tlaunch.launcher.process.lifeline import Lifeline

DEADLINE = 20.0

HOLDER = """
    import subprocess, sys, time
    from tlaunch.launcher.process.lifeline import Lifeline
    line = Lifeline()
    child = subprocess.Popen(sys.argv[1:], **line.popen_kwargs())
    line.guard(child.pid)
    print(child.pid, flush=True)
    time.sleep(600)
"""


def wait_for_end(pidfd: int, deadline: float = DEADLINE) -> bool:
    return bool(select.select([pidfd], [], [], deadline)[0])


def sleeper(ready: str = "print('ready', flush=True)") -> list[str]:
    return [sys.executable, "-c", f"import os, signal, time, subprocess; {ready}; time.sleep(600)"]


def start_holder(*command: str) -> tuple[subprocess.Popen[str], int]:
    """Start a process that holds the lifeline of ``command``; return it and a pidfd of the guarded process."""
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), *command], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    lines = {holder.stdout.readline().strip(), holder.stdout.readline().strip()}
    assert "ready" in lines
    return holder, os.pidfd_open(int((lines - {"ready"}).pop()))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_dies_with_the_holder(end: signal.Signals) -> None:
    holder, guarded = start_holder(*sleeper())
    with holder:
        holder.send_signal(end)
        assert wait_for_end(guarded)
    os.close(guarded)


def test_a_stopped_process_dies_too() -> None:
    holder, guarded = start_holder(*sleeper("print('ready', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"))
    with holder:
        holder.kill()
        assert wait_for_end(guarded)
    os.close(guarded)


def test_the_whole_group_dies() -> None:
    with Lifeline() as line:
        grandchild = f"subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(600)'])"
        ready = f"p = {grandchild}; print(p.pid, flush=True)"
        with subprocess.Popen(sleeper(ready), stdout=subprocess.PIPE, text=True, **line.popen_kwargs()) as child:
            line.guard(child.pid)
            assert child.stdout is not None
            pidfd = os.pidfd_open(int(child.stdout.readline()))
            line.close()
            assert child.wait(DEADLINE) == -signal.SIGKILL
            assert wait_for_end(pidfd)
            os.close(pidfd)


def test_a_program_that_ignores_every_signal_dies() -> None:
    ignore = "[signal.signal(s, signal.SIG_IGN) for s in (15, 1, 2, signal.SIGIO)]; print('ready', flush=True)"
    line = Lifeline()
    with subprocess.Popen(sleeper(ignore), stdout=subprocess.PIPE, text=True, **line.popen_kwargs()) as child:
        line.guard(child.pid)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        line.close()
        assert child.wait(DEADLINE) == -signal.SIGKILL


def test_a_holder_that_died_before_arming() -> None:
    code = """
        import os, sys
        from tlaunch.launcher.process.lifeline import arm
        sys.stdin.readline()
        arm(int(sys.argv[1]), os.getpgrp())
        print("alive", flush=True)
    """
    line = Lifeline()
    command = [sys.executable, "-c", textwrap.dedent(code), str(line.read_fd)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(line.read_fd,), start_new_session=True
    ) as child:
        line.close()
        output, _ = child.communicate(b"go\n", DEADLINE)
    assert child.returncode == -signal.SIGKILL
    assert output == b""


def test_a_guarded_process_may_end_by_itself() -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    with Lifeline() as line, subprocess.Popen(command, **line.popen_kwargs()) as child:
        assert child.wait(DEADLINE) == 7
        line.guard(child.pid)


def test_closing_twice_closes_nothing_else() -> None:
    line = Lifeline()
    line.close()
    read, write = os.pipe()  # takes the numbers that the lifeline had
    line.close()
    os.close(read)
    os.close(write)
