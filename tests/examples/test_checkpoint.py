"""The checkpoint example, as its first lines tell it: saved by three ranks under torchrun, restored by two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "checkpoint" / "standalone.py"


def under_torchrun(ranks: int, *arguments: str) -> str:
    """Run the example and return what it prints."""
    return launched("torchrun", "--standalone", f"--nproc-per-node={ranks}", str(SCRIPT), *arguments)


def launched(launcher: str, *arguments: str) -> str:
    """Run a launcher and return what is printed."""
    command = [str(Path(sys.executable).with_name(launcher)), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_saved_on_three_ranks_and_restored_on_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # where tlaunch notes which jobs run
    folder = str(tmp_path / "run")
    assert "3 ranks go on after step 0\nstep 10: loss" in under_torchrun(3, folder, "--steps", "10")
    nodes = ("--nodes", "2", "--gpus-per-node", "1", "--log-dir", str(tmp_path / "logs"))
    said = launched("tlaunch", *nodes, str(SCRIPT), folder, "--steps", "20")
    assert "2 ranks go on after step 10\n" in said
    assert "step 20: loss" in said
    assert "1 ranks go on after step 20\nnothing to do" in under_torchrun(1, folder, "--steps", "20")
