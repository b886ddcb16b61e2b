"""A lifeline: a process group that the kernel kills the moment its holder is gone.

The holder keeps the write end of a pipe and the guarded process has the read end, armed so that the kernel itself
answers the pipe's hang-up with SIGKILL to the whole process group (``F_SETSIG``, ``F_SETOWN``, ``O_ASYNC``; see
fcntl(2)). It takes about a millisecond, needs no thread, no polling and no parent relation, works on stopped
processes, and outlives exec.

Why not ``PR_SET_PDEATHSIG``: it hangs on the *thread* that forked, reaches one process instead of a group, and
guards only children, while a worker's parent is the zygote and its holder the agent.

What escapes: a process that has left the group (``setsid``), and a group in which every copy of the read end is closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from types import TracebackType
from typing import Any, Self


class Lifeline:
    """The holder's side.

    One lifeline guards one process group, because the armed state belongs to the pipe's read end.
    """

    def __init__(self) -> None:
        # Close-on-exec matters: a stray copy of the write end in another child would keep the guarded group alive.
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)

    @property
    def read_fd(self) -> int:
        """The end to hand to the guarded process."""
        return self._read_fd

    def popen_kwargs(self) -> dict[str, Any]:
        """Return the arguments with which ``Popen`` or ``create_subprocess_exec`` starts a program to ``guard``.

        It leads a session of its own. There is no ``preexec_fn`` among them, on purpose: it makes Python fork for real,
        and where grpc's threads run one child in ten dies of SIGSEGV or SIGABRT before it has come to exec.
        """
        return {"pass_fds": (self._read_fd,), "start_new_session": True}

    def guard(self, pid: int) -> None:
        """Arm for a program that ``popen_kwargs`` has just started. One that has ended already needs no guard."""
        with contextlib.suppress(ProcessLookupError):
            arm(self._read_fd, pid)

    def close(self) -> None:
        """Let go: whatever is still alive in the guarded group is killed. Safe to call twice."""
        for fd in (self._write_fd, self._read_fd):
            if fd >= 0:
                os.close(fd)
        self._write_fd = self._read_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def arm(read_fd: int, group: int) -> None:
    """Bind a process group to the life of the holder of the write end.

    The group's processes have to keep ``read_fd`` open. When the holder is gone already, this kills them at once.
    """
    fcntl.fcntl(read_fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(read_fd, fcntl.F_SETOWN, -group)
    fcntl.fcntl(read_fd, fcntl.F_SETFL, fcntl.fcntl(read_fd, fcntl.F_GETFL) | os.O_ASYNC)
    # A hang-up before O_ASYNC was set has sent no signal.
    poll = select.poll()
    poll.register(read_fd, 0)
    if poll.poll(0):
        os.killpg(group, signal.SIGKILL)
