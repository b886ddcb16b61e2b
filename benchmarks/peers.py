"""The environment of the peers: made at first use, apart from tlaunch's own, whose torch it shares.

It lies in ``benchmarks/.peers``; remove that to have it made anew. ``benchmarks/peers.txt`` names what is in it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE / ".peers"
WANTED = HERE / "peers.txt"
READY = FOLDER / "ready"
INSTALL_SECONDS = 900.0


class Missing(Exception):
    """The peers cannot be had on this machine."""


def peers_bin() -> Path:
    """Return the folder of the peers' programs, after installing them if need be. Raises ``Missing``."""
    folder = FOLDER / "bin"
    # The same torch for everybody, and none to install: what this interpreter has is seen by the peers' one too.
    shared = sysconfig.get_path("purelib")
    state = f"{sys.executable}\n{shared}\n{WANTED.read_text()}"
    if READY.exists() and READY.read_text() == state:
        return folder
    print(f"Making {FOLDER} for the peers", file=sys.stderr)
    _run(sys.executable, "-m", "venv", "--clear", str(FOLDER))
    own = next((FOLDER / "lib").glob("python*/site-packages"))
    (own / "shared.pth").write_text(shared + "\n")
    _run(str(folder / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(WANTED))
    READY.write_text(state)
    return folder


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise Missing(said[-1] if said else f"exit code {error.returncode}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(str(error)) from error
