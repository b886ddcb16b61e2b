"""Counting GPUs: what a job takes for the slots of its nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.topology.discover.standin import Driver, build, gpu
from tlaunch.topology.discover.nvml import _visible

DRIVER_NOT_LOADED, NO_PERMISSION, VERSION_MISMATCH, UNKNOWN = 9, 4, 18, 999
FOUR = [gpu(index) for index in range(4)]
BROKEN = "the NVIDIA driver does not work (NVML: {}), so no GPU is used; try nvidia-smi"


def count(driver: Driver, **environ: str) -> tuple[int | None, list[str]]:
    """Count GPUs in a new interpreter; returns the answer and what was logged."""
    code = """
        import logging
        from tlaunch.topology.discover.nvml import gpu_count

        class Kept(logging.Handler):
            lines = []

            def emit(self, record):
                self.lines.append(f"{record.levelname} {record.getMessage()}")

        logging.basicConfig(handlers=[Kept()])
        print(json.dumps([gpu_count(), Kept.lines]))
    """
    answer, logged = driver.ask(code, **environ)
    return answer, logged


def test_four_gpus(driver: Driver) -> None:
    driver.be(*FOUR)
    assert count(driver) == (4, [])


def test_a_driver_without_gpus(driver: Driver) -> None:
    assert count(driver) == (None, [])


def test_a_library_without_its_driver(driver: Driver) -> None:
    driver.be(f"init={DRIVER_NOT_LOADED}", *FOUR)
    assert count(driver) == (None, [])


def test_no_library(tmp_path: Path) -> None:
    # An empty file under its name hides a real library, should this machine have one, and cannot be loaded.
    (tmp_path / "libnvidia-ml.so.1").touch()
    assert count(Driver(tmp_path)) == (None, [])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"init={VERSION_MISMATCH}", "RM has detected an NVML/RM version mismatch."),
        (f"init={UNKNOWN}", "Unknown Error"),
        (f"count={NO_PERMISSION}", "Insufficient Permissions"),
    ],
)
def test_a_broken_driver_is_one_warning(driver: Driver, line: str, why: str) -> None:
    driver.be(line, *FOUR)
    assert count(driver) == (None, [f"WARNING {BROKEN.format(why)}"])


def test_a_driver_too_old_to_count(tmp_path: Path) -> None:
    driver = build(tmp_path, -1)
    driver.be(*FOUR)
    assert count(driver) == (None, [f"WARNING {BROKEN.format('Function Not Found')}"])


def test_only_visible_gpus_count(driver: Driver) -> None:
    driver.be(*FOUR)
    assert count(driver, CUDA_VISIBLE_DEVICES="2,3") == (2, [])
    assert count(driver, CUDA_VISIBLE_DEVICES="") == (None, [])


@pytest.mark.parametrize(
    ("listed", "visible"),
    [
        ("0,1,2,3", 4),
        (" 3 , 0 ", 2),
        ("0,4,1", 1),
        ("0,-1,1", 1),
        ("-1", 0),
        ("", 0),
        ("0,0", 0),
        ("none", 0),
        ("GPU-8932f937,MIG-1b2c", 2),
    ],
)
def test_cuda_visible_devices_means_what_it_means_to_cuda(listed: str, visible: int) -> None:
    assert _visible(listed, present=4) == visible
