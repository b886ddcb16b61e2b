"""What the options do, end to end: policies, configuration, modules, fresh interpreters, drains."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.job import STEPS, node_of, running
from tests.topology.discover.standin import CLIQUE, build, tray

SMALL = ("--nodes", "3", "--gpus-per-node", "2", "--spares", "2")

POLICY = '''
import tlaunch

class Never(tlaunch.Policy):
    """Give up at the first failure, with a reason of our own."""

    def on_failure(self, failure, cluster):
        return tlaunch.Stop(f"rank {failure.rank} failed and I do not forgive")

class Broken(tlaunch.Policy):
    def on_failure(self, failure, cluster):
        raise ZeroDivisionError("the policy's own bug")
'''


def test_a_policy_decides(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(POLICY)
    with running(tmp_path, *SMALL, "--policy", "mine:Never") as job:
        job.seats(0, 4)
        job.trouble(2, "raise")
        assert job.ended() != 0
        assert "rank 2 failed and I do not forgive" in job.events()[-1]["result"]["reason"]


def test_a_policy_that_raises_is_noted_and_the_ladder_takes_over(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(POLICY)
    with running(tmp_path, *SMALL, "--policy", "mine:Broken") as job:
        before = job.seats(0, 4)
        job.trouble(2, "raise")
        assert job.seats(1, 4) == before
        job.finish()
        assert "ZeroDivisionError" in " ".join(job.events()[1]["reasons"])


def test_fresh_interpreters_behave_the_same(tmp_path: Path) -> None:
    with running(tmp_path, "--nodes", "1", "--gpus-per-node", "2", "--start", "fresh") as job:
        before = job.seats(0, 2)
        os.kill(job.trace(1)[-1]["pid"], signal.SIGKILL)
        assert job.seats(1, 2) == before
        words = psutil.Process(job.trace(1)[-1]["pid"]).cmdline()
        assert (Path(words[0]).parent, words[1]) == (Path(sys.executable).parent, str(STEPS))
        job.finish()


def test_a_module_and_a_configuration_file(tmp_path: Path) -> None:
    package = tmp_path / "training"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "main.py").write_text(STEPS.read_text())
    (tmp_path / "job.yaml").write_text("nodes: 5\ngpus-per-node: 2\nmodule: training.main\nargs: [work]\n")
    config = ("--config", str(tmp_path / "job.yaml"), "--nodes", "1")
    with running(tmp_path, *config, script=None) as job:
        job.seats(0, 2)
        job.finish()


def test_drained_ranks_move_to_spares_and_no_restart_is_charged(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL) as job:
        before = job.seats(0, 4)
        assert job.command("drain", node_of(before[0]), "--job-id", job.job_id).returncode == 0
        after = job.seats(1, 4)
        assert node_of(before[0]) not in map(node_of, after.values())
        status = job.command("status", job.job_id, "--json")
        assert '"restarts": 0' in status.stdout
        job.finish()


def test_a_rank_that_an_operator_kills_is_restarted_though_no_restart_is_left(tmp_path: Path) -> None:
    with running(tmp_path, *SMALL, "--max-restarts", "0") as job:
        before = job.seats(0, 4)
        assert job.command("kill", "--rank", "1", "--job-id", job.job_id).returncode == 0
        assert job.seats(1, 4) == before
        job.finish()
        (cause,) = job.events()[1]["causes"]
        assert cause.startswith(f"rank 1 on {before[1]} failed: killed by SIGKILL: killed by an operator")


def test_agents_find_out_where_their_nodes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_NAME", "gb01")
    monkeypatch.setenv("TLAUNCH_LABELS", "topology.kubernetes.io/zone=z1,topology.kubernetes.io/rack=r7")
    with running(tmp_path, "--topology", "auto", *SMALL) as job:
        job.seats(0, 4)
        answer = json.loads(job.command("status", job.job_id, "--json").stdout)
        assert {(node["pod"], node["rack"]) for node in answer["nodes"]} == {("z1", "r7")}
        job.finish()
    agents = sorted((job.logs / "agents").glob("node-0?.log"))
    assert len(agents) == 3
    assert all("rack r7, pod z1" in agent.read_text() for agent in agents)


def test_the_gpus_and_the_domain_that_the_driver_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = build(tmp_path)
    driver.be(*tray())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver.folder))
    monkeypatch.setenv("STAND_IN", str(driver.folder / "machine"))
    with running(tmp_path, "--topology", "auto", "--spares", "1") as job:
        assert job.seats(0, 3) == {rank: f"node-00/gpu-{rank}" for rank in range(3)}
        (node,) = json.loads(job.command("status", job.job_id, "--json").stdout)["nodes"]
        assert (node["domain"], len(node["slots"])) == (f"{CLIQUE}.1", 4)
        job.finish()
