"""A standby: the forked child from its birth until it becomes a worker.

It makes a session of its own, ties itself to its agent, says that it is ready and waits for one ``Work``. Then it turns
into the script, or into a fresh interpreter where the script would notice that it runs in a forked one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from tlaunch.launcher.elastic.bootstrap import become
from tlaunch.launcher.elastic.ending import Ending
from tlaunch.launcher.elastic.forkable import why_fresh
from tlaunch.launcher.elastic.title import set_title
from tlaunch.launcher.process.channel import Channel, ChannelClosed
from tlaunch.launcher.process.lifeline import arm
from tlaunch.launcher.process.messages import STACK_SIGNAL, Work


@dataclass(frozen=True, slots=True)
class Standby:
    """What a standby is given at its birth.

    ``control`` and ``lifeline`` are open descriptors; ``cuda_device`` is where to make a CUDA context, if anywhere;
    ``start_env`` is the environment that the zygote was started with; ``ending`` is how a worker ends.
    """

    control: int
    lifeline: int
    cuda_device: int | None
    start_env: Mapping[str, str]
    ending: Ending

    def run(self) -> None:
        """Wait for work and become it. Returns or raises what the script does, for the interpreter to end by."""
        os.setsid()
        lifeline = _move_high(self.lifeline)
        arm(lifeline, os.getpgrp())
        set_title("tlaunch standby")
        channel = Channel(socket.socket(fileno=self.control))
        note = None if self.cuda_device is None else _make_cuda_context(self.cuda_device)
        channel.send({"ready": True, "note": note})
        try:
            message, fds = channel.receive_one()
        except ChannelClosed:
            os._exit(0)
        work = Work.from_json(message["work"], fds)
        try:
            _take_place(work)
        except OSError as error:
            channel.send({"note": f"cannot start {work.argv[0]}: {error}"})
            os._exit(1)
        reason = None
        if work.mode == "fork":
            reason = why_fresh(work, self.start_env, has_cuda_context=self.cuda_device is not None)
        if reason is not None:
            channel.send({"note": reason})
        if work.mode == "fresh" or reason is not None:
            channel.close()
            _exec(work, lifeline)
        self.ending.report_to(_move_high(os.dup(channel.fileno())))
        channel.close()
        if work.stack is not None:
            _answer_with_stack(work.stack)
        become(work, self.ending)


def _move_high(fd: int) -> int:
    """Move a descriptor out of the way of the low numbers that a script sees."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(3, min(soft, 1024) - 8))
    os.close(fd)
    return high


def _make_cuda_context(device: int) -> str | None:
    """Initialise CUDA on one device so that the worker need not; return why it was not possible."""
    import torch

    try:
        torch.cuda.init()
        torch.empty(1, device=f"cuda:{device}")
        torch.cuda.synchronize(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        return f"no CUDA context on device {device}: {error}"
    return None


def _take_place(work: Work) -> None:
    """Enter the folder and connect the output files."""
    os.chdir(work.cwd)
    for fd, path in ((1, work.stdout), (2, work.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.dup2(file, fd)
        os.close(file)


def _answer_with_stack(path: str) -> None:
    """Have ``STACK_SIGNAL`` write the stack of the main thread into a file, whatever that thread does.

    Of that thread alone: nothing keeps the others from running meanwhile.
    """
    import faulthandler

    with contextlib.suppress(OSError):  # the disk is full, perhaps; then nobody asks
        file = _move_high(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))
        faulthandler.register(STACK_SIGNAL, file, all_threads=False)


def _exec(work: Work, lifeline: int) -> None:
    """Become a fresh interpreter with the same pid, session and lifeline."""
    for fd in (lifeline, *work.fds.values()):
        os.set_inheritable(fd, True)
    # Python ignores these two at its start; a new program expects the default.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    command = [sys.executable, *(["-m"] if work.module else []), *work.argv]
    os.execve(sys.executable, command, work.full_env())  # noqa: S606 - no shell is wanted
