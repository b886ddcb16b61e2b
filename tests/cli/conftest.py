from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from tlaunch.launcher.cli.main import exit_code

Tlaunch: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with one script, ``train.py``, and an empty registry of jobs."""
    (tmp_path / "work").mkdir()
    (tmp_path / "run").mkdir(0o700)
    (tmp_path / "work" / "train.py").write_text("print('hello')\n")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr("tlaunch.launcher.hosts.registry._SHARED", tmp_path)
    for name in ("", "_USER", "_PASSWORD", "_CACERT", "_CERT", "_KEY"):
        monkeypatch.delenv(f"TLAUNCH_ETCD{name}", raising=False)
    return tmp_path / "work"


@pytest.fixture
def tlaunch(here: Path, capsys: pytest.CaptureFixture[str]) -> Tlaunch:
    """Run a command line in this process; returns exit code, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        code = exit_code(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
