"""The examples' modules, imported as their scripts import them: from their own folder, by their bare names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def gpt() -> Iterator[SimpleNamespace]:
    with _modules(EXAMPLES / "gpt", "checkpoint", "data", "model", "train") as found:
        yield found


@pytest.fixture(scope="session")
def demo() -> Iterator[SimpleNamespace]:
    with _modules(EXAMPLES / "demo", "job", "plot", "records", "report", "scene", "table") as found:
        yield found


@contextmanager
def _modules(folder: Path, *names: str) -> Iterator[SimpleNamespace]:
    """Import modules of these names from ``folder``, and forget them afterwards: the names are common ones."""
    sys.path.insert(0, str(folder))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
