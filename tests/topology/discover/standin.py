"""A driver for machines that have none: its library, compiled here, and machines for it to be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

SOURCE = Path(__file__).with_name("driver.c")
CLUSTER = "5e1f0a7c9b3d4e6fa1b2c3d4e5f60718"
CLIQUE = "5e1f0a7c-9b3d-4e6f-a1b2-c3d4e5f60718"


@dataclass(frozen=True)
class Driver:
    """A folder with a library, and a file that says what machine it is."""

    folder: Path

    def be(self, *lines: str) -> None:
        """Change the machine."""
        (self.folder / "machine").write_text("\n".join(lines) + "\n")

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this Python with this driver, in an environment without traces of others."""
        leave = ("CUDA_", "SLURM", "TLAUNCH_", "NODE_NAME", "LD_LIBRARY_PATH")
        env = {name: value for name, value in os.environ.items() if not name.startswith(leave)}
        env |= {"LD_LIBRARY_PATH": str(self.folder), "STAND_IN": str(self.folder / "machine"), **environ}
        return subprocess.run(
            [sys.executable, "-W", "error", *words], env=env, capture_output=True, text=True, check=False, timeout=60
        )

    def ask(self, code: str, **environ: str) -> Any:  # noqa: ANN401
        """Run Python code and return what it prints as JSON."""
        done = self.run("-c", "import json\n" + dedent(code), **environ)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def report(self, node: str = "gb01", **environ: str) -> Any:  # noqa: ANN401
        """Return what the driver says as a source."""
        code = """
            import os
            from tlaunch.topology.discover.nvml import report
            from tlaunch.topology.discover.shown import _report
            print(json.dumps(_report(report(os.environ["NODE_NAME"]))))
        """
        return self.ask(code, **{"NODE_NAME": node, **environ})


def build(folder: Path, fabric: int = 4) -> Driver:
    """Compile the library. ``fabric``: the newest structure for that which it knows; 0: none, -1: too old to count."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "these tests need a C compiler, as cc or gcc"
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-DFABRIC={fabric}", str(SOURCE)]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1")], check=True, timeout=60)
    return Driver(folder)


def gpu(index: int, **settings: object) -> str:
    """Return the line of one GPU: sound, without a fabric, unless the settings say otherwise."""
    words = {"uuid": f"GPU-{index:08x}", "pci": f"0000000{index}:01:00.0", "name": "Stand-in", "mig": 0, "rows": 1}
    return " ".join(["gpu", *(f"{key}={value}" for key, value in {**words, "ecc": 1, **settings}.items())])


def tray(**settings: object) -> list[str]:
    """Return the GPUs of one tray of an NVL72 rack."""
    return [gpu(i, **{"cluster": CLUSTER, "clique": 1, "state": 3, "summary": 1, **settings}) for i in range(4)]
