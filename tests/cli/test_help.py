"""The first thing that anybody sees has to come at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

HEAVY = ("torch", "numpy", "grpc", "etcd3aio", "yaml", "pynvml", "asyncio", "rich", "concurrent.futures", "pydantic")


def imported(*words: str) -> tuple[str, Sequence[str]]:
    """Run the program; returns what it printed and which of the heavy modules it had imported in the end."""
    program = (
        "import atexit, sys\n"
        "from tlaunch.launcher.cli.main import main\n"
        f"atexit.register(lambda: print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr))\n"
        f"main({list(words)})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout, done.stderr.split()


def test_the_page_imports_nothing_heavy() -> None:
    page, heavy = imported("--help")
    assert page.startswith("Usage: tlaunch ")
    assert heavy == []


@pytest.mark.parametrize("words", [["--nodes", "2", "--help"], ["status", "--help"], ["topology", "--help"]])
def test_the_other_pages_import_only_what_typer_does(words: list[str]) -> None:
    page, heavy = imported(*words)
    assert page.startswith("Usage: tlaunch ")
    assert set(heavy) <= {"pydantic"}


def test_version() -> None:
    page, heavy = imported("--version")
    assert page.startswith("tlaunch 0.")
    assert "torch" not in heavy
