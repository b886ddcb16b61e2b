"""``events.jsonl``: one JSON object for each committed plan, for programs to read.

=================  ==================================================================================================
``time``           wall time at which the launcher saw the plan, in seconds since 1970
``generation``     the plan's number
``causes``         what had happened, a sentence each
``decisions``      what was decided, a sentence each
``reasons``        why, a sentence each
``first_failure``  ``null``, or the rank that failed first, of those that the causes name: ``rank``, ``host``, ``node``,
                   ``slot``, ``code``, ``signal``, ``hang`` (true or false), ``message``, ``ran`` (seconds),
                   ``last_lines``, ``traceback`` (of one that hangs, its stack)
``world_size``     ranks
``spares``         healthy slots without a rank
``restart_count``  what the ranks see as TORCHELASTIC_RESTART_COUNT
``result``         ``null``, or how the job ended: ``{"code": ..., "reason": ...}``
=================  ==================================================================================================
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tlaunch.launcher.core.events import RankFailed
from tlaunch.launcher.core.plan import Plan
from tlaunch.launcher.observe.report import first_failure

NAME = "events.jsonl"


class EventLog:
    """Writes ``events.jsonl`` into a log directory, in place of an earlier job's.

    Each line is in the file as soon as ``write`` returns. No job ends because that cannot be (the disk is full): what
    is left to write goes before the next line, and ``tell`` is told once.
    """

    def __init__(self, log_dir: Path, tell: Callable[[str], None]) -> None:
        self._path = log_dir / NAME
        self._file = self._path.open("wb", buffering=0)
        self._left = b""
        self._tell: Callable[[str], None] | None = tell

    def write(self, plan: Plan, spares: int) -> None:
        """Append one plan."""
        self._left += json.dumps(entry(plan, spares, time.time()), ensure_ascii=False).encode(errors="replace") + b"\n"
        self._write_out()

    def close(self) -> None:
        self._write_out()
        self._file.close()

    def _write_out(self) -> None:
        try:
            while self._left:
                self._left = self._left[self._file.write(self._left) :]
        except OSError as error:
            if self._tell is not None:
                self._tell(f"{self._path} cannot be written: {error.strerror}; the job goes on")
                self._tell = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def entry(plan: Plan, spares: int, at: float) -> dict[str, Any]:
    """Return what is written for one plan."""
    return {
        "time": round(at, 3),
        "generation": plan.generation,
        "causes": [str(event) for event in plan.events],
        "decisions": list(plan.decisions),
        "reasons": list(plan.reasons),
        "first_failure": None if (failure := first_failure(plan)) is None else _failure(failure),
        "world_size": plan.world_size,
        "spares": spares,
        "restart_count": plan.generation - 1,
        "result": None if plan.result is None else {"code": plan.result.code, "reason": plan.result.reason},
    }


def _failure(failure: RankFailed) -> dict[str, Any]:
    ended = failure.exit
    return {
        "rank": failure.rank,
        "host": ended.host,
        "node": failure.slot.node,
        "slot": str(failure.slot),
        "code": ended.code,
        "signal": ended.signal,
        "hang": ended.hang is not None,
        "message": ended.message,
        "ran": round(ended.ran, 3),
        "last_lines": ended.output.splitlines() if ended.output else [],
        "traceback": ended.traceback,
    }
