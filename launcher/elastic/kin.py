"""What a worker has started and left: processes that have got away from its process group, with ``setsid`` for example.

The zygote is made the *subreaper* of everything below it (prctl(2)): a process whose parent has ended becomes its
child. Whose it was is told by what processes pass on to their children: an exec'd one has its worker's environment,
a forked one holds the worker's lifeline. One that has got rid of both is nobody's, and left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36

# The three together name one worker of one job. Both sides have them: see messages.REPORTED_ENV.
_NAMES = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "RANK")


@dataclass(frozen=True, slots=True)
class Mark:
    """What shows that a process comes from a worker. ``lifeline``: the pipe as /proc has it."""

    lifeline: str
    env: frozenset[bytes]

    @classmethod
    def of(cls, lifeline: int, env: Mapping[str, str]) -> Mark:
        """Return the mark of a worker that holds this lifeline and was started with ``env``."""
        words = frozenset(f"{name}={env[name]}".encode() for name in _NAMES if name in env)
        return cls(f"pipe:[{os.fstat(lifeline).st_ino}]", words if len(words) == len(_NAMES) else frozenset())

    def is_on(self, pid: int) -> bool:
        """Tell whether a process carries the mark."""
        process = Path(f"/proc/{pid}")
        try:
            if self.env and self.env <= set((process / "environ").read_bytes().split(b"\0")):
                return True
            return any(self.lifeline == str(fd.readlink()) for fd in (process / "fd").iterdir())
        except OSError:  # it has ended, or changed its user
            return False


class Kin:
    """The children that this process has not made itself."""

    def __init__(self) -> None:
        self._ended: set[Mark] = set()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def worker_ended(self, mark: Mark, own: set[int]) -> None:
        """Kill what a worker has left. ``own``: the children that were forked here."""
        self._ended.add(mark)
        self.look(own)

    def look(self, own: set[int]) -> None:
        """Reap those that have ended, and kill those whose worker has.

        To be called at each SIGCHLD: what a killed process has left becomes a child of ours in turn.
        """
        for pid in _children() - own:
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None:
                    continue
                if any(mark.is_on(pid) for mark in self._ended):
                    os.kill(pid, signal.SIGKILL)  # ours to reap, so the pid is still its own


def _children() -> set[int]:
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return set()
