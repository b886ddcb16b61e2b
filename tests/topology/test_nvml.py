"""Counting GPUs, against a stand-in for the driver's library that this test compiles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tlaunch.topology.discover.nvml import _visible

COMPILER = shutil.which("cc") or shutil.which("gcc")

# What nvidia-ml-py calls, in NVML's own ABI. The environment says how this driver behaves.
STAND_IN = r"""
#include <stdlib.h>

static int number(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

int nvmlInitWithFlags(unsigned int flags) { return number("STAND_IN_INIT"); }
int nvmlShutdown(void) { return 0; }
#ifndef WITHOUT_COUNT
int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = number("STAND_IN_GPUS");
    return number("STAND_IN_COUNT");
}
#endif
"""

DRIVER_NOT_LOADED, NO_PERMISSION, VERSION_MISMATCH, UNKNOWN = 9, 4, 18, 999


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a driver's library."""
    return build(tmp_path_factory.mktemp("driver"))


def build(folder: Path, *options: str) -> Path:
    if COMPILER is None:
        pytest.skip("no C compiler to build the stand-in for the driver")
    source = folder / "nvml.c"
    source.write_text(STAND_IN)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([COMPILER, "-shared", "-fPIC", *options, "-o", library, source], check=True, timeout=60)
    return folder


def count(folder: Path, **environ: str | int) -> tuple[str, str]:
    """Count in a process of its own, which loads the library from ``folder``; return the answer and what was logged."""
    code = """
        import logging
        from tlaunch.topology.discover.nvml import gpu_count
        logging.basicConfig(format="%(levelname)s %(message)s")
        print(gpu_count())
    """
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    settings = {name: str(value) for name, value in environ.items()}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(code)],
        env=inherited | settings | {"LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip(), done.stderr.strip()


def test_four_gpus(driver: Path) -> None:
    assert count(driver, STAND_IN_GPUS=4) == ("4", "")


def test_a_driver_without_gpus(driver: Path) -> None:
    assert count(driver, STAND_IN_GPUS=0) == ("None", "")


def test_a_library_without_its_driver(driver: Path) -> None:
    assert count(driver, STAND_IN_INIT=DRIVER_NOT_LOADED) == ("None", "")


def test_no_library(tmp_path: Path) -> None:
    # An empty file under its name hides a real library, should this machine have one, and cannot be loaded.
    (tmp_path / "libnvidia-ml.so.1").touch()
    assert count(tmp_path) == ("None", "")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"STAND_IN_INIT": VERSION_MISMATCH}, "RM has detected an NVML/RM version mismatch."),
        ({"STAND_IN_INIT": UNKNOWN}, "Unknown Error"),
        ({"STAND_IN_COUNT": NO_PERMISSION}, "Insufficient Permissions"),
    ],
)
def test_a_broken_driver_is_one_warning(driver: Path, settings: dict[str, int], why: str) -> None:
    answer, logged = count(driver, STAND_IN_GPUS=4, **settings)
    assert answer == "None"
    assert logged == f"WARNING the NVIDIA driver does not work (NVML: {why}), so no GPU is used; try nvidia-smi"


def test_a_driver_too_old_to_count(tmp_path: Path) -> None:
    answer, logged = count(build(tmp_path, "-DWITHOUT_COUNT"))
    assert answer == "None"
    assert (
        logged
        == "WARNING the NVIDIA driver does not work (NVML: Function Not Found), so no GPU is used; try nvidia-smi"
    )


def test_only_visible_gpus_count(driver: Path) -> None:
    assert count(driver, STAND_IN_GPUS=4, CUDA_VISIBLE_DEVICES="2,3") == ("2", "")
    assert count(driver, STAND_IN_GPUS=4, CUDA_VISIBLE_DEVICES="") == ("None", "")


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
