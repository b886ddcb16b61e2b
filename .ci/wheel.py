"""Build the sdist, the wheel from it, and use the installed wheel from an empty directory.

The wheel is installed alone into a new environment; its dependencies are those of the environment that runs this
script, found through a path file, so that PyTorch is not fetched a second time. A path file adds directories only: it
does not run the path files in them, so the editable install beside those dependencies stays out of reach.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("launcher", "topology", "checkpoint", "conf")

INSPECT = """
import importlib.metadata, importlib.resources, pathlib, sys
import tlaunch, tlaunch.launcher, tlaunch.topology, tlaunch.checkpoint

home = pathlib.Path(tlaunch.__file__)
assert home.is_relative_to(sys.prefix), f"imported {home}, not the installed wheel"
assert tlaunch.__version__ == importlib.metadata.version("tlaunch")
shipped = [entry.name for entry in importlib.resources.files("tlaunch.conf").iterdir() if entry.name.endswith(".yaml")]
assert shipped, "no topology files"
for name in ("launcher", "topology", "checkpoint", "conf"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"the wheel installs a top-level module named {name}")
print("installed:", home.parent, "with", ", ".join(sorted(shipped)))
"""

SCRIPT = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == int(os.environ["WORLD_SIZE"]) == 2
if dist.get_rank() == 0:
    print("two ranks reached each other", flush=True)
dist.destroy_process_group()
"""


def run(*command: str | Path, cwd: Path, timeout: float = 300.0) -> str:
    """Run a command without stdin, show it, and return what it printed; end the script when it fails."""
    print("+", *command, flush=True)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nended with exit code {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def expected_files() -> set[str]:
    """All files of the package, by their names in the wheel, as git would ship them: read from the real folders."""
    package = ROOT / ".src" / "tlaunch"
    found = {f"tlaunch/{path.name}" for path in package.glob("*.py")} | {"tlaunch/py.typed"}
    for room in ROOMS:
        for pattern in ("*.py", "*.yaml") if room == "conf" else ("*.py",):
            found |= {f"tlaunch/{path.relative_to(ROOT)}" for path in (ROOT / room).rglob(pattern)}
    return found


def check_archives(dist: Path) -> Path:
    """Check what the two archives hold and return the wheel's path."""
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")
    expected = expected_files()
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    if shipped != expected:
        sys.exit(f"the wheel lacks {sorted(expected - shipped)} and has {sorted(shipped - expected)} too many")
    with tarfile.open(sdist) as tar:
        names = {member.name.partition("/")[2]: member for member in tar.getmembers()}
    lost = {name for name in expected if f".src/{name}" not in names or not names[f".src/{name}"].isfile()}
    if lost:
        sys.exit(f"the sdist lacks {sorted(lost)}")
    return wheel


def install(wheel: Path, environment: Path) -> Path:
    """Install the wheel alone into a new environment and return the environment's bin directory."""
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=environment.parent)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=environment).strip())
    borrowed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "dependencies.pth").write_text("\n".join(borrowed) + "\n")
    return environment / "bin"


def main() -> None:
    """Build, check, install, use."""
    with tempfile.TemporaryDirectory(prefix="tlaunch-wheel-") as scratch:
        room = Path(scratch)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", room / "dist", ROOT, cwd=room)
        bin_dir = install(check_archives(room / "dist"), room / "environment")
        empty = room / "empty"
        empty.mkdir()
        inspect = room / "inspect_installed.py"
        inspect.write_text(INSPECT)
        print(run(bin_dir / "python", inspect, cwd=empty).strip())
        run(bin_dir / "tlaunch", "--help", cwd=empty)
        script = room / "script.py"
        script.write_text(SCRIPT)
        run(bin_dir / "tlaunch", "--nodes", "1", "--gpus-per-node", "2", "--log-dir", room / "logs", script, cwd=empty)
        print("the wheel works")


if __name__ == "__main__":
    main()
