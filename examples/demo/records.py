"""What the demo reads while a job runs: the training script's metrics and the launcher's log of plans.

Both files hold one JSON object a line and are appended to while they are read. A line that is not whole yet is left for
the next look; a line that is no record is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Start:
    """The training script began, or went on from the checkpoint of ``step``. ``time`` is wall time in seconds."""

    step: int
    time: float
    world_size: int


@dataclass(frozen=True, slots=True)
class Step:
    """``step`` steps are complete. ``loss`` is in nats for each byte, ``time`` wall time in seconds."""

    step: int
    time: float
    world_size: int
    loss: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The launcher committed a plan: what had happened and what it decided, a sentence each."""

    generation: int
    time: float
    causes: tuple[str, ...]
    decisions: tuple[str, ...]


class Lines:
    """The lines of a growing file that were not there at the last look. The file need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the objects in the whole lines that have been added."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


@dataclass(slots=True)
class Records:
    """All that has been read so far, in the order of the files."""

    runs: list[Start] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The step that was completed last; 0 before the first."""
        return self.steps[-1].step if self.steps else 0

    def add_metrics(self, lines: Lines) -> None:
        """Take in what the training script has written since the last look."""
        for record in lines.new():
            when = float(record["time"])
            if record.get("event") == "start":
                self.runs.append(Start(int(record["step"]), when, int(record["world_size"])))
            elif record.get("event") == "step":
                step = Step(int(record["step"]), when, int(record["world_size"]), float(record["loss"]))
                self.steps.append(step)

    def add_plans(self, lines: Lines) -> None:
        """Take in what the launcher has decided since the last look."""
        for record in lines.new():
            self.plans.append(
                Plan(
                    generation=int(record.get("generation", 0)),
                    time=float(record.get("time", 0.0)),
                    causes=tuple(map(str, record.get("causes", ()))),
                    decisions=tuple(map(str, record.get("decisions", ()))),
                )
            )
