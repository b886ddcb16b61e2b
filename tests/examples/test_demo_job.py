"""What examples/demo knows of a running job: who is where, how much memory it takes; and the whole demo in small."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.examples.conftest import EXAMPLES

STATUS = {
    "nodes": [
        {"name": "node-00", "slots": [{"role": "rank", "rank": 0}, {"role": "bad", "rank": None}]},
        {"name": "node-01", "slots": [{"role": "spare", "rank": None}, {"role": "rank", "rank": 1}]},
    ]
}


def test_a_rank_is_found_on_its_gpu(demo: SimpleNamespace) -> None:
    assert demo.job.slot_of(STATUS, 0) == ("node-00", "node-00/gpu-0")
    assert demo.job.slot_of(STATUS, 1) == ("node-01", "node-01/gpu-1")
    with pytest.raises(demo.job.CommandFailed, match="shows no rank 2"):
        demo.job.slot_of(STATUS, 2)


def test_a_command_that_fails_says_why(demo: SimpleNamespace) -> None:
    with pytest.raises(demo.job.CommandFailed, match="no job 'not-there' is running here"):
        demo.job.ask("status", "not-there")


def test_the_failures_hit_different_ranks_in_order(demo: SimpleNamespace) -> None:
    acts = demo.scene.Scene(nodes=18, spares=8, steps=70, deadline=1.0).acts

    assert [act.kind for act in acts] == ["rank", "gpu", "node"]
    assert [act.step for act in acts] == sorted({act.step for act in acts})
    assert len({act.rank // 4 for act in acts}) == 3


def test_shared_memory_is_counted_once(demo: SimpleNamespace) -> None:
    size = 64 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as shared:
        shared.write(b"x" * size)
        alone = demo.job.Memory(os.getpid())
        alone._add_up()  # with whatever else the tests before have left running
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
            assert demo.job.proportional_size(other.pid) < size
            memory = demo.job.Memory(os.getpid())
            memory._add_up()
    assert alone.peak > size
    assert size < memory.peak < alone.peak + size
    assert memory.processes >= 2
    assert demo.job.proportional_size(other.pid) is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_whole_demo_in_small(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "demo"), "--nodes", "3", "--spares", "5", "--steps", "150"]
    done = subprocess.run([*command, "--out", "demo"], check=False, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo" / "loss.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    kinds = [one["failure"]["kind"] for one in report["recoveries"]]
    assert (kinds, report["problems"], report["steps"]) == (["rank", "gpu", "node"], [], 150)
    decisions = [" ".join(one["decisions"]) for one in report["recoveries"]]
    assert "restart rank 5 in place" in decisions[0]
    assert "swap rank 2: node-00/gpu-2 ->" in decisions[1]
    assert decisions[2].count("swap rank") == 4
