"""Runs a script as several ranks, without a launcher: one process imports torch, and forks them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
PATIENCE = 100.0


def run_ranks(script: str, *runs: tuple[int, tuple[str, ...]], folder: Path) -> None:
    """Run it as so many ranks with such arguments, one run after the other, and check that all of them end well."""
    plan = [f"{world}:{' '.join(arguments)}" for world, arguments in runs]
    command = [sys.executable, "-W", "error", str(SCRIPTS / "fork.py"), str(SCRIPTS / script), str(folder), *plan]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, env=env, timeout=PATIENCE, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
