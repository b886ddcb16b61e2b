"""A real job, started as a user would: the console script, an embedded etcd, agents, and gloo ranks in steps.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TLAUNCH = str(Path(sys.executable).parent / "tlaunch")
STEPS = Path(__file__).parent / "scripts" / "steps.py"
PATIENCE = 90.0
"""Seconds after which something that was to happen counts as never happening; nothing waits for it on purpose."""


def node_of(slot: str) -> str:
    """Return the node of a slot as it is written."""
    return slot.partition("/")[0]


def command_lines() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the pid and the command line of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                yield int(entry.name), (entry / "cmdline").read_bytes().split(b"\0")


@dataclass
class Job:
    """A running ``tlaunch``. ``folder`` is what steps.py works in, ``logs`` the log directory."""

    job_id: str
    folder: Path
    logs: Path
    process: subprocess.Popen[str]
    env: Mapping[str, str]

    def trace(self, rank: int) -> list[dict[str, Any]]:
        """Return the steps that a rank has completed so far, in order."""
        try:
            lines = (self.folder / f"trace-{rank}").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def last(self, rank: int) -> dict[str, Any]:
        """Return the step that a rank has completed last. There has to be one."""
        with (self.folder / f"trace-{rank}").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            entry: dict[str, Any] = json.loads(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
            return entry

    def events(self) -> list[dict[str, Any]]:
        """Return the plans that were committed so far."""
        try:
            lines = (self.logs / "events.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def seats(self, restarts: int, world: int) -> dict[int, str]:
        """Wait until every rank has completed a step after so many restarts, and return their slots."""
        found: dict[int, str] = {}

        def everybody() -> bool:
            for rank in range(world):
                for entry in reversed(self.trace(rank)):
                    if int(entry["TORCHELASTIC_RESTART_COUNT"]) == restarts and entry["world"] == world:
                        found[rank] = entry["TLAUNCH_SLOT"]
                        break
            return len(found) == world

        self.until(everybody, f"all of {world} ranks to complete a step after {restarts} restarts")
        return found

    def another_step(self, world: int) -> None:
        """Wait until every rank has gone on."""
        last = max(self.last(rank)["step"] for rank in range(world))
        self.until(lambda: all(self.last(rank)["step"] > last for rank in range(world)), "another step")

    def goes_on(self, seconds: float, world: int) -> None:
        """Check that every rank completes steps for so many seconds, without a new generation."""
        generations = len(self.events())
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.another_step(world)
        assert len(self.events()) == generations, self.told()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something to happen while the job runs."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None and not condition():
                code = self.process.returncode
                raise AssertionError(f"the job ended (exit code {code}); expected {what}\n{self.told()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {PATIENCE:g} s in vain for {what}\n{self.told()}")
            time.sleep(0.02)

    def until_written(self, path: Path) -> str:
        """Wait until a file has something in it, and return that."""
        self.until(lambda: path.exists() and path.stat().st_size > 0, f"{path.name} to be written")
        return path.read_text()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another tlaunch command, as from another shell."""
        command = [TLAUNCH, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=self.env, cwd=self.folder
        )

    def controller(self) -> str:
        """Return the node of the controller."""
        answer = self.command("status", self.job_id, "--json")
        assert answer.returncode == 0, answer.stderr
        return str(json.loads(answer.stdout)["controller"])

    def spare(self, node: str) -> bool:
        """Whether a node takes part and has no rank."""
        status = json.loads(self.command("status", self.job_id, "--json").stdout)
        slots = [slot for found in status["nodes"] if found["name"] == node for slot in found["slots"]]
        return bool(slots) and all(slot["role"] == "spare" for slot in slots)

    def agent_pid(self, node: str) -> int:
        """Find the agent of a node by its command line."""
        wanted = {b"tlaunch.launcher.control", f"--node={node}".encode(), f"--job={self.job_id}".encode()}
        return next(pid for pid, words in command_lines() if wanted <= set(words))

    def trouble(self, rank: int, how: str, *, always: bool = False) -> None:
        """Have a rank misbehave in its next step."""
        self._wish({"rank": rank, "how": how}, "always" if always else "trouble")

    def trouble_on(self, slot: str, how: str) -> None:
        """Have whichever rank runs on a slot misbehave, each time."""
        self._wish({"slot": slot, "how": how}, "always")

    def _wish(self, what: dict[str, Any], name: str) -> None:
        draft = self.folder / "trouble.draft"
        draft.write_text(json.dumps(what))
        draft.rename(self.folder / name)

    def finish(self) -> None:
        """Have the script come to its end, and check that the job ends well."""
        (self.folder / "finish").touch()
        assert self.ended() == 0, self.told()

    def ended(self) -> int:
        """Wait for the launcher's end and return its exit code."""
        return self.process.wait(PATIENCE)

    def told(self) -> str:
        """Return everything that the launcher and the agents have said."""
        files = [self.logs.parent / "console", *sorted((self.logs / "agents").glob("*.log"))]
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files if file.exists())


@contextlib.contextmanager
def running(
    tmp_path: Path,
    *options: str,
    script: Path | None = STEPS,
    arguments: tuple[str, ...] = (),
    prefix: Sequence[str] = (),
    terminal: int | None = None,
) -> Iterator[Job]:
    """Start a job and see to it that it is gone in the end.

    ``script=None``: the options name what to run. ``prefix``: a command that becomes ``tlaunch``, as ``nice`` does.
    ``terminal``: what it reads from and prints to, in place of the file ``console``.
    """
    folder, logs = tmp_path / "work", tmp_path / "logs"
    folder.mkdir()
    # A registry of its own, so that jobs of other tests and of the user are out of sight.
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    job_id = f"test-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    command = [*prefix, TLAUNCH, "--job-id", job_id, "--log-dir", str(logs), *options]
    if script is not None:
        command += [str(script), *(arguments or (str(folder),))]
    with (tmp_path / "console").open("w") as console:
        out = console if terminal is None else terminal
        process = subprocess.Popen(
            command, stdin=terminal, stdout=out, stderr=out, text=True, start_new_session=True, cwd=tmp_path, env=env
        )
    try:
        yield Job(job_id, folder, logs, process, env)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
