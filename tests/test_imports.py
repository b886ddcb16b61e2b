"""Importing is cheap: torch and other heavy packages are loaded where they are used, and nowhere else."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import tlaunch

LIGHT_ROOMS = (
    "tlaunch.topology",
    "tlaunch.launcher.cli",
    "tlaunch.launcher.control",
    "tlaunch.launcher.core",
    "tlaunch.launcher.hosts",
    "tlaunch.launcher.observe",
    "tlaunch.launcher.process",
    "tlaunch.launcher.store",
)

REPORT = "import sys; print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a new interpreter has loaded after running the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("loaded: ").split())


def modules(room: str) -> list[str]:
    """All modules of a room, by name, without those that are programs."""
    package = importlib.import_module(room)
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{room}.")]
    return [room, *(name for name in found if not name.endswith(".__main__"))]


def test_importing_the_package_loads_nothing_of_weight() -> None:
    heavy = {"asyncio", "grpc", "rich", "torch", "typer", "yaml"}
    assert loaded_by("import tlaunch") & heavy == set()


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_no_module_of_a_light_room_loads_torch(room: str) -> None:
    names = modules(room)
    assert len(names) > 1, f"{room} is empty"
    loaded = loaded_by("\n".join(f"import {name}" for name in names))
    assert "tlaunch" in loaded
    assert loaded & {"torch", "numpy", "matplotlib"} == set()


def test_the_core_loads_no_event_loop() -> None:
    loaded = loaded_by("\n".join(f"import {name}" for name in modules("tlaunch.launcher.core")))
    assert loaded & {"asyncio", "grpc", "socket", "subprocess", "torch"} == set()


def test_the_agent_does_not_load_torch() -> None:
    assert "torch" not in loaded_by("import tlaunch.launcher.control.agent")


def test_help_loads_neither_torch_nor_the_store() -> None:
    code = """
import sys
sys.argv = ["tlaunch", "--help"]
from tlaunch.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert loaded_by(code) & {"torch", "numpy", "grpc", "matplotlib"} == set()


@pytest.mark.parametrize(
    "command",
    [[str(Path(sysconfig.get_path("scripts")) / "tlaunch")], [sys.executable, "-m", "tlaunch"]],
    ids=["script", "module"],
)
def test_help_is_printed(command: list[str]) -> None:
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--spares" in done.stdout


@pytest.mark.parametrize("name", tlaunch.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(tlaunch, name) is not None
    assert name in dir(tlaunch)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'tlaunch' has no attribute 'spanner'"):
        _ = tlaunch.spanner  # type: ignore[attr-defined]
