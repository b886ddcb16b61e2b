"""``tlaunch topology discover`` as the user runs it, with and without a driver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.topology.discover.standin import CLIQUE, Driver, build, tray


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return build(tmp_path_factory.mktemp("driver"))


def test_a_machine_without_a_gpu(driver: Driver) -> None:
    driver.be("init=9")
    done = driver.run("-m", "tlaunch", "topology", "discover", NODE_NAME="laptop", COLUMNS="150", PATH="/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert "laptop" in done.stdout
    assert "nobody knows" in done.stdout
    assert done.stdout.endswith(
        "- nvml: no NVIDIA driver\n"
        "- hostname: no source says where nodes are: they are taken in alphabetical order, and which are neighbours is "
        "a guess\n"
    )


def test_a_tray_shows_what_each_source_said_and_what_won(driver: Driver, tmp_path: Path) -> None:
    driver.be(*tray())
    (tmp_path / "labels").write_text('nvidia.com/gpu.clique="stale.1"\ntopology.kubernetes.io/rack="r7"\n')
    slurm = {
        "SLURM_TOPOLOGY_ADDR": "b7.gb01",
        "SLURM_TOPOLOGY_ADDR_PATTERN": "block.node",
        "SLURM_JOB_NODELIST": "gb01",
        "SLURM_JOB_GPUS": "0,1,2,3",
        "SLURMD_NODENAME": "gb01",
        "PATH": "/nowhere",
    }
    words = ("-m", "tlaunch", "topology", "discover", "--metadata", f"{tmp_path}/labels")
    shown = driver.run(*words, **slurm, COLUMNS="150")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"gb01: domain: nvml says {CLIQUE}.1, gpu-clique says stale.1; nvml wins" in shown.stdout
    assert "slurm: b7" in shown.stdout
    assert "GPU-00000003" in shown.stdout

    told = json.loads(driver.run(*words, "--json", **slurm).stdout)
    assert told["nodes"] == [
        {
            "name": "gb01",
            "pod": None,
            "rack": {"value": "r7", "source": "kubernetes"},
            "domain": {"value": f"{CLIQUE}.1", "source": "nvml"},
            "slots": {"value": 4, "source": "nvml"},
        }
    ]
    assert [source["source"] for source in told["sources"]] == ["nvml", "gpu-clique", "kubernetes", "slurm"]
    assert told["sources"][0]["gpus"]["gb01"][3]["uuid"] == "GPU-00000003"
    assert [conflict["value"] for conflict in told["contradictions"]] == [f"{CLIQUE}.1"]
    assert told["precedence"][:2] == ["file", "nvml"]


def test_large_machines_are_shown_in_part(driver: Driver, tmp_path: Path) -> None:
    driver.be("init=9")
    (tmp_path / "t.yaml").write_text("domain_per: rack\nracks: {r1: 'a[001-400]', r2: 'b[001-600]'}")
    words = ("-m", "tlaunch", "topology", "discover", "--topology", f"{tmp_path}/t.yaml")
    shown = driver.run(*words, PATH="/nowhere", NODE_NAME="a001").stdout
    assert "and 960 more nodes; --json shows all" in shown
    told = json.loads(driver.run(*words, "--json", PATH="/nowhere", NODE_NAME="a001").stdout)
    assert len(told["nodes"]) == 1000


def test_bad_input_is_one_line(driver: Driver) -> None:
    driver.be("init=9")
    done = driver.run("-m", "tlaunch", "topology", "discover", PATH="/nowhere", SLURM_JOB_NODELIST="gb[")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "tlaunch: SLURM_JOB_NODELIST: 'gb[' has a bracket that is not closed; expected a list such as gb[01-18,20],x7\n"
    )
