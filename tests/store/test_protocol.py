"""The records of the protocol, and what importing the room costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tlaunch.launcher import store as room
from tlaunch.launcher.store.protocol import Compare


def test_a_comparison_has_exactly_one_condition() -> None:
    with pytest.raises(ValueError, match="exactly one condition, not 0"):
        Compare("k")
    with pytest.raises(ValueError, match="exactly one condition, not 2"):
        Compare("k", value=b"", mod_revision=0)


def test_every_public_name_is_there() -> None:
    for name in room.__all__:
        assert getattr(room, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'spanner'"):
        _ = room.spanner


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_grpc_is_only_loaded_for_etcd() -> None:
    code = "import sys; from tlaunch.launcher.store import Endpoints, MemoryStore, Mirror; print('grpc' in sys.modules)"
    assert run(code) == "False\n"


def test_loading_etcd_leaves_no_trace_in_the_environment_or_on_the_path() -> None:
    code = """
import os, sys
before = dict(os.environ), list(sys.path)
from tlaunch.launcher.store import connect
print("grpc" in sys.modules, (dict(os.environ), list(sys.path)) == before)
"""
    assert run(code) == "True True\n"
