"""What the driver says, through a stand-in for its library."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.topology.discover.standin import CLIQUE, CLUSTER, Driver, build, gpu, tray


def said(driver: Driver, **environ: str) -> dict[str, object]:
    """What is said of the node itself."""
    answer: dict[str, object] = driver.report(**environ)["nodes"].get("gb01", {})
    return answer


def test_a_tray_of_an_nvl72_rack(driver: Driver) -> None:
    driver.be(*tray(name="NVIDIA_GB200"))
    report = driver.report()
    assert report["nodes"] == {"gb01": {"pod": None, "rack": None, "domain": f"{CLIQUE}.1", "slots": 4}}
    assert report["gpus"]["gb01"][2] == {
        "index": 2,
        "uuid": "GPU-00000002",
        "pci": "00000002:01:00.0",
        "name": "NVIDIA GB200",
        "clique": f"{CLIQUE}.1",
        "unsettled": False,
        "peers": [0, 1, 3],
        "ecc": True,
        "fault": None,
    }
    assert report["notes"] == []


def test_nvlink_of_an_hgx_node_ends_at_the_node(driver: Driver) -> None:
    # Its fabric manager works for this node alone: completed, with a cluster of zeros.
    driver.be(*(gpu(index, state=3) for index in range(8)))
    assert said(driver) == {"pod": None, "rack": None, "domain": "gb01", "slots": 8}


def test_one_consumer_gpu_is_in_no_domain(driver: Driver) -> None:
    driver.be("nvlink=0", gpu(0, ecc=-1, rows=0, mig=-1))
    report = driver.report()
    assert report["nodes"]["gb01"] == {"pod": None, "rack": None, "domain": None, "slots": 1}
    assert report["gpus"]["gb01"][0]["ecc"] is None


def test_gpus_without_nvlink_are_in_no_domain(driver: Driver) -> None:
    driver.be("nvlink=0", gpu(0), gpu(1))
    report = driver.report()
    assert report["nodes"]["gb01"]["domain"] is None
    assert [gpu["peers"] for gpu in report["gpus"]["gb01"]] == [[], []]


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        (["init=9"], "no NVIDIA driver"),
        ([], "a driver without GPUs"),
        (
            ["init=18"],
            (
                "the NVIDIA driver does not work (NVML: RM has detected an NVML/RM version mismatch.), "
                "so no GPU is used; try nvidia-smi"
            ),
        ),
    ],
)
def test_no_driver_and_a_broken_one_are_notes(driver: Driver, lines: list[str], note: str) -> None:
    driver.be(*lines)
    report = driver.report()
    assert (report["nodes"], report["notes"]) == ({}, [note])


def test_no_library(tmp_path: Path) -> None:
    # An empty file under its name hides a real library, should this machine have one, and cannot be loaded.
    (tmp_path / "libnvidia-ml.so.1").touch()
    assert Driver(tmp_path).report()["notes"] == ["no NVIDIA driver"]


@pytest.mark.parametrize("way", ["lost", "gone"])
def test_a_gpu_that_fell_off_the_bus(driver: Driver, way: str) -> None:
    lines = tray()
    lines[1] += f" {way}=1"
    driver.be(*lines)
    report = driver.report()
    assert report["nodes"]["gb01"] == {"pod": None, "rack": None, "domain": f"{CLIQUE}.1", "slots": 3}
    assert report["notes"] == ["gpu 1: it has fallen off the bus; the node needs a reboot"]
    assert report["gpus"]["gb01"][1]["uuid"] is None
    assert report["gpus"]["gb01"][0]["peers"] == [2, 3]


def test_mig_is_refused(driver: Driver) -> None:
    driver.be(gpu(0), gpu(1, mig=1))
    done = driver.run("-m", "tlaunch", "topology", "discover", NODE_NAME="gb01")
    line = "nvml: gb01: gpu 1: is cut into parts (MIG); expected whole GPUs: nvidia-smi -i 1 -mig 0"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"tlaunch: {line}\n")


def test_mig_on_a_gpu_that_is_not_ours_is_none_of_our_business(driver: Driver) -> None:
    driver.be("nvlink=0", gpu(0), gpu(1, mig=1))
    assert said(driver, CUDA_VISIBLE_DEVICES="0")["slots"] == 1


def test_two_gpus_with_one_uuid(driver: Driver) -> None:
    driver.be(gpu(0), gpu(1, uuid="GPU-00000000"))
    done = driver.run("-m", "tlaunch", "topology", "discover")
    assert done.returncode == 2
    assert done.stderr == (
        "tlaunch: nvml: gpu 1: uuid: GPU-00000000 is that of gpu 0 too; expected a uuid of its own for each GPU\n"
    )


@pytest.mark.parametrize(
    ("state", "status", "note"),
    [
        (0, 0, None),
        (1, 0, "its registration with the NVLink fabric has not started: the domain is not known yet"),
        (2, 0, "its registration with the NVLink fabric is in progress: the domain is not known yet"),
        (3, 3, "its registration with the NVLink fabric has failed (NVML error 3)"),
    ],
)
def test_a_clique_counts_only_when_registration_has_succeeded(
    driver: Driver, state: int, status: int, note: str | None
) -> None:
    driver.be(*tray(state=state, status=status))
    report = driver.report()
    # Only where there is no fabric at all does NVLink end at the node.
    assert report["nodes"]["gb01"]["domain"] == (None if note else "gb01")
    assert report["notes"] == ([f"gpu {index}: {note}" for index in range(4)] if note else [])


@pytest.mark.parametrize("version", [2, 3])
def test_older_drivers_know_older_structures(tmp_path: Path, version: int) -> None:
    driver = build(tmp_path, version)
    driver.be(*tray(clique=7, summary=2))
    report = driver.report()
    assert report["nodes"]["gb01"]["domain"] == f"{CLIQUE}.7"
    # Only from version 3 on there is a summary of the fabric's health.
    assert bool(report["notes"]) == (version == 3)


def test_a_driver_without_fabric_functions(tmp_path: Path) -> None:
    driver = build(tmp_path, 0)
    driver.be(*tray())
    report = driver.report()
    assert (report["nodes"]["gb01"]["domain"], report["notes"]) == ("gb01", [])


def test_several_cliques(driver: Driver) -> None:
    # Kind 1 is for multicast: its clique is not the one whose memory can be reached.
    driver.be(gpu(0, cluster=CLUSTER, state=3, cliques="1:2,0:9,0:4"))
    report = driver.report()
    assert report["nodes"]["gb01"]["domain"] == f"{CLIQUE}.4"
    assert report["notes"] == ["gpu 0: it is in 2 cliques (4, 9); the lowest is taken"]


def test_no_clique_for_memory(driver: Driver) -> None:
    driver.be(gpu(0, cluster=CLUSTER, state=3, cliques="1:2"))
    report = driver.report()
    assert report["nodes"]["gb01"]["domain"] is None
    assert report["notes"] == ["gpu 0: it is in an NVLink fabric but in no clique of it"]


def test_a_node_whose_gpus_are_in_different_domains_is_in_none(driver: Driver) -> None:
    driver.be(*tray()[:2], *(line.replace("clique=1", "clique=2") for line in tray()[2:]))
    report = driver.report()
    assert report["nodes"]["gb01"]["domain"] is None
    assert report["notes"] == [
        f"its GPUs are in 2 NVLink domains ({CLIQUE}.1, {CLIQUE}.2): it is in none as a whole",
    ]
    assert said(driver, CUDA_VISIBLE_DEVICES="2,3")["domain"] == f"{CLIQUE}.2"


def test_only_visible_gpus_are_slots(driver: Driver) -> None:
    driver.be(*tray())
    assert said(driver, CUDA_VISIBLE_DEVICES="GPU-00000003,1")["slots"] == 2
    report = driver.report(CUDA_VISIBLE_DEVICES="0,9")
    assert report["nodes"]["gb01"]["slots"] == 1
    assert report["notes"] == ["CUDA_VISIBLE_DEVICES: there is no GPU '9': CUDA uses only those before it"]


def test_parts_of_gpus_in_the_environment_are_refused(driver: Driver) -> None:
    driver.be(*tray())
    done = driver.run("-m", "tlaunch", "topology", "discover", CUDA_VISIBLE_DEVICES="MIG-1b2c")
    assert done.stderr == ("tlaunch: CUDA_VISIBLE_DEVICES: 'MIG-1b2c' is a part of a GPU (MIG); expected whole GPUs\n")
