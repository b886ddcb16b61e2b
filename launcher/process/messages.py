"""What an agent, the zygote and a standby tell each other. Each type knows its JSON form.

agent -> zygote      ``{"fork": id, "cuda_device": int | null}`` + [control socket, lifeline]
                     ``{"started": pid, "env": {...}}``: what is needed to describe the process's failure
zygote -> agent      ``{"forked": id, "pid": pid}`` + [pidfd], or ``{"refused": id, "why": text}``
                     ``{"stopped": pid}`` by a signal such as SIGSTOP, ``{"continued": pid}``
                     ``{"ended": pid, "exit": {...}}``
standby -> agent     ``{"ready": true, "note": text | null}``, later perhaps ``{"note": text}``, at a worker's end
                     ``{"result": code}``, should its zygote not be there to tell, and ``{"error": text}``, what it
                     has failed with, should the error file be missing; on the control socket
agent -> standby     ``{"work": {...}}`` + [further descriptors]; once
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

Mode = Literal["fork", "fresh"]

# What asks a worker for the stack of its main thread: a signal that neither scripts nor libraries are known to use.
STACK_SIGNAL = signal.SIGRTMAX - 7

# What the zygote must know of a worker's environment to describe its end.
REPORTED_ENV = (
    "GROUP_RANK", "LOCAL_RANK", "PET_EVENT_LOG_HANDLER", "RANK", "ROLE_NAME",
    "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Work:
    """What a standby becomes: ``python argv...``, or ``python -m argv...`` when ``module`` is true.

    ``env`` is the whole environment. ``stdout`` and ``stderr`` are files to append to. ``fork`` runs it in the forked
    interpreter where that cannot be noticed, ``fresh`` always in a new one. ``fds`` hands over open descriptors:
    each name becomes an environment variable that holds the descriptor's number; the sender keeps its own copy.
    ``stack``: the file in which a forked interpreter answers ``STACK_SIGNAL``; ``None``: it does not.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdout: str
    stderr: str
    module: bool = False
    mode: Mode = "fork"
    fds: Mapping[str, int] = field(default_factory=dict)
    stack: str | None = None

    def full_env(self) -> dict[str, str]:
        """Return the environment with the numbers of the descriptors that were handed over."""
        return {**self.env, **{name: str(fd) for name, fd in self.fds.items()}}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, in which ``fds`` holds positions in the list of descriptors sent along."""
        return {
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": self.cwd,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "module": self.module,
            "mode": self.mode,
            "fds": list(self.fds),
            "stack": self.stack,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], fds: list[int]) -> Self:
        values: dict[str, Any] = {**data, "argv": tuple(data["argv"]), "fds": dict(zip(data["fds"], fds, strict=True))}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``code`` and ``signal`` are both ``None`` when nobody can know: its zygote died first.

    The rest is what torchelastic's ``ProcessFailure`` knows of a failure: one line, the Python traceback if one was
    recorded, the error file it was read from, and when the failure was recorded (seconds since the epoch).
    """

    code: int | None = None
    signal: int | None = None
    message: str | None = None
    traceback: str | None = None
    error_file: str | None = None
    timestamp: int | None = None

    @property
    def ok(self) -> bool:
        return self.code == 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {_signal_name(self.signal)}"
        if self.code is not None:
            return f"exit code {self.code}"
        return "ended in an unknown way"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"
