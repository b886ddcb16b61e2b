"""What happens in the demo, and when: the job is started, hurt three times, and followed to its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job import CommandFailed, Job, Memory, running, slot_of
from records import Lines, Records
from report import Failure, Outcome

_TRAIN = Path(__file__).parents[1] / "gpt" / "train.py"
_TOPOLOGY = "nvl72"
_GPUS = 4  # of each node in that topology
_CHECKPOINT_EVERY = 5  # steps
_LOOK = 0.05  # seconds between two looks at the files


@dataclass(frozen=True, slots=True)
class Act:
    """A failure to cause when ``step`` is complete: ``kind`` is what fails (rank, gpu, node), under this ``rank``."""

    step: int
    kind: str
    rank: int


@dataclass(frozen=True, slots=True)
class Scene:
    """The size of the job, and how long it may take in seconds."""

    nodes: int
    spares: int
    steps: int
    deadline: float

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.nodes * _GPUS - self.spares

    @property
    def acts(self) -> tuple[Act, ...]:
        """The failures, spread over the run; each hits ranks of other nodes."""
        world = self.world_size
        return (
            Act(round(self.steps * 0.20), "rank", min(5, world - 1)),
            Act(round(self.steps * 0.45), "gpu", world // 3),
            Act(round(self.steps * 0.70), "node", world * 2 // 3),
        )

    def command(self, folder: Path) -> list[str]:
        """What is given to ``tlaunch``, besides the job's id."""
        machine = ["--nodes", str(self.nodes), "--spares", str(self.spares), "--topology", _TOPOLOGY]
        job = ["--mesh", f"dp={self.world_size}", "--log-dir", str(folder / "logs")]
        script = [str(_TRAIN), "--steps", str(self.steps)]
        files = ["--metrics", str(folder / "metrics.jsonl"), "--checkpoint", str(folder / "checkpoint")]
        return [*machine, *job, *script, *files, "--checkpoint-every", str(_CHECKPOINT_EVERY)]


def play(scene: Scene, job_id: str, folder: Path) -> tuple[Records, list[Failure], Outcome]:
    """Run the scene to its end, and return what was recorded, what was done, and how the job ended."""
    records = Records()
    metrics = Lines(folder / "metrics.jsonl")
    command = scene.command(folder)
    say(f"tlaunch --job-id {job_id} {' '.join(command)}")
    with running(job_id, command) as job, Memory(job.pid) as memory:
        director = Director(scene.acts, job, records)
        while not job.ended(within=_LOOK):
            records.add_metrics(metrics)
            director.look()
            if time.time() > job.started + scene.deadline:
                say(f"ending the job, because it has taken more than {scene.deadline:g} s")
                break
    outcome = Outcome(job.exit_code(), job.started, time.time(), memory.peak, memory.taken, memory.processes)
    records.add_metrics(metrics)
    records.add_plans(Lines(folder / "logs" / "events.jsonl"))
    return records, director.failures, outcome


class Director:
    """Causes the failures one after the other, each when its step has come and the one before has been recovered."""

    def __init__(self, acts: Sequence[Act], job: Job, records: Records) -> None:
        self.failures: list[Failure] = []
        self._acts = list(acts)
        self._job = job
        self._records = records
        self._status: dict[str, Any] | None = None

    def look(self) -> None:
        """Do what it is time for: find out where the next victim is, or hurt it."""
        if not self._acts or not self._records.steps or self._is_recovering():
            return
        try:
            if self._status is None:  # asked for ahead of time: 64 busy ranks leave a command little of two cores
                self._status = self._job.status()
            elif self._records.last_step >= self._acts[0].step:
                self.failures.append(self._cause(self._acts.pop(0), self._status))
                self._status = None
        except CommandFailed as error:
            say(str(error))
            self._acts.clear()

    def _is_recovering(self) -> bool:
        if not self.failures:
            return False
        hurt = self.failures[-1].asked
        start = next((run.time for run in self._records.runs if run.time > hurt), None)
        return start is None or self._records.steps[-1].time < start

    def _cause(self, act: Act, status: Mapping[str, Any]) -> Failure:
        node, gpu = slot_of(status, act.rank)
        what, flag, name = {
            "rank": (f"rank {act.rank} on {gpu} killed", "--rank", str(act.rank)),
            "gpu": (f"{gpu} broken (rank {act.rank})", "--gpu", gpu),
            "node": (f"{node} lost (rank {act.rank} and others)", "--node", node),
        }[act.kind]
        say(f"tlaunch kill --job-id {self._job.job_id} {flag} {name}")
        asked = time.time()
        self._job.kill(flag, name)
        return Failure(act.kind, what, asked)


def say(text: str) -> None:
    """Print a notice of the demo between the lines of the job."""
    print(f"demo: {text}", flush=True)
