from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tlaunch.launcher.core

FILES = sorted(Path(tlaunch.launcher.core.__path__[0]).glob("*.py"))
FORBIDDEN = {"asyncio", "datetime", "os", "random", "socket", "subprocess", "threading", "time", "torch"}


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_module_of_the_core_can_do_more_than_think(path: Path) -> None:
    names = imported(ast.parse(path.read_text()))
    assert not {name.partition(".")[0] for name in names} & FORBIDDEN
    ours = {name for name in names if name.startswith("tlaunch.")}
    rooms = ("tlaunch.launcher.core.", "tlaunch.topology", "tlaunch.errors")
    assert [name for name in ours if not name.startswith(rooms)] == []


def test_importing_the_core_loads_neither_torch_nor_asyncio() -> None:
    modules = [f"tlaunch.launcher.core.{path.stem}" for path in FILES if path.stem != "__init__"]
    program = f"import sys, {', '.join(modules)}; print(sorted({{'asyncio', 'torch', 'numpy'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
