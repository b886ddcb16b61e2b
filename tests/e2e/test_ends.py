"""However a job ends, its exit code says so, and nothing of it stays behind.

That no process, socket or shared memory is left is checked after every test, by the fixture in ``tests/conftest.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.faults import fault
from tests.e2e.job import Job, running
from tlaunch.launcher.process.scratch import Scratch

PAIR = ("--nodes", "2", "--gpus-per-node", "1")


def family(job: Job) -> list[psutil.Process]:
    """Return the launcher and everything below it: agents, zygote, etcd, standbys and ranks."""
    launcher = psutil.Process(job.process.pid)
    found = [launcher, *launcher.children(recursive=True)]
    assert len(found) >= 1 + 2 + 1 + 1 + 2
    return found


def all_gone(processes: list[psutil.Process], within: float = 20.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


LOST = "steps since the checkpoint"
IN_ORDER = "scripts get SIGTERM and 5 s to end; the exit code is 128 + the signal's number"


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(
            number,
            marks=fault("launcher", name, noticed="at once", decision=IN_ORDER, lost=LOST),
        )
        for name, number in [("Ctrl-C", signal.SIGINT), ("SIGTERM", signal.SIGTERM), ("SIGHUP", signal.SIGHUP)]
    ],
)
def test_a_signal_stops_everything_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        processes = family(job)
        job.process.send_signal(number)
        assert job.ended() == 128 + number, job.told()
        assert all_gone(processes)
        assert job.events()[-1]["result"] == {"code": 128 + number, "reason": f"stopped by {number.name}"}
        assert "no job is running here" in job.command("status").stderr


def test_a_second_signal_kills_everything_at_once(tmp_path: Path) -> None:
    deaf = tmp_path / "deaf.py"
    deaf.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1] + '/ready', 'w').close()\n"
        "time.sleep(600)\n"
    )
    with running(tmp_path, "--nodes", "1", "--gpus-per-node", "1", script=deaf) as job:
        job.until((job.folder / "ready").exists, "the script to ignore SIGTERM")
        processes = [psutil.Process(job.process.pid), *psutil.Process(job.process.pid).children(recursive=True)]
        job.process.send_signal(signal.SIGINT)
        job.until(lambda: "once more" in job.told(), "the launcher to say that it stops")
        started = time.monotonic()
        job.process.send_signal(signal.SIGINT)
        assert job.ended() == 128 + signal.SIGINT
        assert time.monotonic() - started < 3, "it must not wait for the script's grace"
        assert all_gone(processes)


@fault(
    "launcher",
    "killed (SIGKILL)",
    noticed="at once: the kernel closes the lifelines that it held",
    decision="the kernel kills every process of the job; the next job removes the files that were left",
    lost="steps since the checkpoint",
)
def test_nothing_survives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        processes = family(job)
        job.process.kill()
        assert job.ended() == -signal.SIGKILL
        assert all_gone(processes)
        assert "no job is running here" in job.command("status").stderr, "what it has left is not taken for a job"
    for prefix in ("tlaunch-run-", "tlaunch-etcd-"):
        Scratch(prefix).remove()  # as the next job does: it removes the files that the dead one has left


@fault(
    "agent",
    "killed alone",
    noticed="at once: its ranks die with it, by their lifelines; its registration is gone when a probe is refused",
    decision="the node's ranks move to spares",
    lost="steps since the checkpoint; the node, unless its agent is started again",
)
def test_nothing_on_a_node_survives_its_agent(tmp_path: Path) -> None:
    with running(tmp_path, "--nodes", "2", "--gpus-per-node", "1", "--spares", "1") as job:
        slot = job.seats(0, 1)[0]
        rank = psutil.Process(job.trace(0)[-1]["pid"])
        os.kill(job.agent_pid(slot.partition("/")[0]), signal.SIGKILL)
        assert all_gone([rank])
        job.seats(1, 1)
        job.finish()


def test_the_exit_code_is_that_of_the_signal_that_killed_the_script(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR, "--max-restarts", "0") as job:
        job.seats(0, 2)
        job.trouble(0, "segv")
        assert job.ended() == 128 + signal.SIGSEGV, job.told()


def test_the_first_traceback_is_shown_once_at_the_end(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR, "--max-restarts", "0") as job:
        job.seats(0, 2)
        job.trouble(1, "raise")
        assert job.ended() == 1
        console = (tmp_path / "console").read_text()
        assert "rank 1" in job.events()[-1]["result"]["reason"]
        assert "ValueError: the loss is not a number" in console.split("the first failure:")[1]


def test_stop_from_another_shell(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        answer = job.command("stop", job.job_id)
        assert answer.returncode == 0, answer.stderr
        assert job.ended() == 143


def test_a_job_id_is_taken_once(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        again = job.command("--job-id", job.job_id, "--log-dir", str(tmp_path / "again"), str(tmp_path / "no.py"))
        assert again.returncode == 2
        (tmp_path / "no.py").write_text("")
        again = job.command("--job-id", job.job_id, "--log-dir", str(tmp_path / "again"), str(tmp_path / "no.py"))
        assert again.returncode == 2
        assert f"tlaunch: job {job.job_id!r} is already running" in again.stderr
        assert len(again.stderr.splitlines()) == 1
        job.finish()


def test_status_from_another_shell(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        document = json.loads(job.command("status", job.job_id, "--json").stdout)
        roles = [slot["role"] for node in document["nodes"] for slot in node["slots"]]
        assert (document["generation"], roles) == (1, ["rank", "rank"])
        job.finish()


def test_a_node_registers_once(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        agent = psutil.Process(job.agent_pid("node-01"))
        command = [word for word in agent.cmdline() if not word.startswith("--lifeline-fd")]
        again = subprocess.run(command, env=agent.environ(), capture_output=True, text=True, timeout=60, check=False)
        assert again.returncode == 2
        assert f"node node-01 of job {job.job_id} is already registered by pid {agent.pid}" in again.stderr
        job.finish()
        assert len(job.events()) == 2, "the first agent was not disturbed"
