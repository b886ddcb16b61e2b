"""What may happen to an agent and to the zygote that its ranks come from, while the ranks themselves are well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.faults import fault
from tests.e2e.job import Job, node_of, running
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Registration
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.core.codec import decode
from tlaunch.launcher.store.endpoints import Endpoints
from tlaunch.launcher.store.etcd import connect

SMALL = ("--nodes", "3", "--gpus-per-node", "1", "--spares", "1")

ALONE = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
mine = folder / f"pid-{os.environ['RANK']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
mine.with_suffix(".draft").write_text(str(os.getpid()))
mine.with_suffix(".draft").rename(mine)
while not (folder / "finish").exists():
    time.sleep(0.02)
"""


def node(job: Job, name: str) -> dict[str, Any]:
    """Return what ``tlaunch status`` says of a node."""
    document = json.loads(job.command("status", job.job_id, "--json").stdout)
    (found,) = (node for node in document["nodes"] if node["name"] == name)
    return dict(found)


def roles(job: Job, name: str) -> list[str]:
    return [slot["role"] for slot in node(job, name)["slots"]]


def seat_of(job: Job, name: str) -> int | None:
    """Return the rank on a node."""
    return next((slot["rank"] for slot in node(job, name)["slots"] if slot["role"] == "rank"), None)


@fault(
    "agent",
    "stopped",
    noticed=f"when its lease ends: {Timing().lease:g} s",
    decision="its ranks move to spares; woken, it kills the ranks that it has lost before it registers, as a spare",
    lost="steps since the checkpoint",
)
def test_a_stopped_agent_loses_its_ranks_and_kills_them_when_it_wakes(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text(ALONE)  # no collective: nothing but its agent ends a rank
    with running(tmp_path, *SMALL, script=script) as job:
        first = [int(job.until_written(job.folder / f"pid-{rank}-0")) for rank in range(2)]
        name = next(name for name in node_names(job) if name != job.controller() and "rank" in roles(job, name))
        rank = seat_of(job, name)
        assert rank is not None
        agent = job.agent_pid(name)
        os.kill(agent, signal.SIGSTOP)
        for other in range(2):
            job.until_written(job.folder / f"pid-{other}-1")
        assert psutil.pid_exists(first[rank]), "nobody is there to end it"
        assert "rank" not in roles(job, name)
        os.kill(agent, signal.SIGCONT)

        def back() -> bool:
            registered = roles(job, name) == ["spare"]
            assert not (registered and psutil.pid_exists(first[rank])), "registered before it ended what it has lost"
            return registered

        job.until(back, "the node to be a spare")
        job.finish()
        assert len(job.events()) == 3


def node_names(job: Job) -> list[str]:
    document = json.loads(job.command("status", job.job_id, "--json").stdout)
    return [node["name"] for node in document["nodes"]]


def registered_pid(job: Job, name: str, env: dict[str, str]) -> int | None:
    """Return the pid of the agent that is registered for a node. ``env``: an agent's, which says where the store is."""

    async def read() -> int | None:
        endpoints = Endpoints.given(env=env)
        assert endpoints is not None
        store = await connect(endpoints)
        try:
            key = Keys(job.job_id).agent(name)
            kv = await store.get(key)
        finally:
            await store.close()
        return None if kv is None else decode(Registration, kv.value, key).pid

    return asyncio.run(read())


@contextlib.contextmanager
def started_again(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start an agent as its supervisor would."""
    words = [word for word in command if not word.startswith("--lifeline-fd")]
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL) as agent:
        try:
            yield agent
        finally:
            if agent.poll() is None:
                agent.terminate()


@fault(
    "agent",
    "restarted",
    noticed="at once: it asks whether who holds its name is still there",
    decision="it registers under the same name and becomes a spare",
    lost="nothing more",
)
def test_an_agent_that_is_started_again_is_a_spare(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job, contextlib.ExitStack() as stack:
        before = job.seats(0, 2)
        (name,) = set(node_names(job)) - set(map(node_of, before.values()))
        agent = psutil.Process(job.agent_pid(name))
        command, env = agent.cmdline(), agent.environ()
        agent.kill()  # a spare's: nobody but its lease tells of that
        again = stack.enter_context(started_again(command, env))
        job.until(lambda: registered_pid(job, name, env) == again.pid, "it to be registered")
        lost = next(slot for slot in before.values() if node_of(slot) != job.controller())
        os.kill(job.agent_pid(node_of(lost)), signal.SIGKILL)
        after = job.seats(1, 2)
        assert node_of(lost) not in map(node_of, after.values())
        assert name in map(node_of, after.values()), "and it is used"
        job.finish()
        assert again.wait(30) == 0


@fault(
    "zygote",
    "killed",
    noticed="at once: its connection to the agents breaks",
    decision="another one is started; ranks and standbys go on, and tell their exit codes themselves",
    lost="nothing; of a rank that ends otherwise than through Python, how it did",
)
def test_ranks_live_on_without_their_zygote_and_end_well(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 2)
        pids = [job.trace(rank)[-1]["pid"] for rank in range(2)]
        zygote = psutil.Process(pids[0]).parent()
        assert zygote is not None
        zygote.kill()
        job.until(lambda: "the zygote has ended" in job.told(), "the launcher to notice")
        job.another_step(2)
        assert [job.trace(rank)[-1]["pid"] for rank in range(2)] == pids
        os.kill(pids[1], signal.SIGKILL)
        assert job.seats(1, 2) == before, "recovered with the standbys of the old one"
        os.kill(job.trace(0)[-1]["pid"], signal.SIGKILL)
        assert job.seats(2, 2) == before, "and with those of the new one"
        job.finish()


def test_ranks_that_end_after_their_zygote_have_ended_well(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        job.seats(0, 2)
        zygote = psutil.Process(job.trace(0)[-1]["pid"]).parent()
        assert zygote is not None
        zygote.kill()
        job.until(lambda: "the zygote has ended" in job.told(), "the launcher to notice")
        job.finish()
        assert len(job.events()) == 2
