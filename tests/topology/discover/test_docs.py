"""docs/topology.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from tlaunch.topology.discover.health import PROGRAM_XIDS
from tlaunch.topology.discover.labels import _KEYS
from tlaunch.topology.discover.report import SOURCES

TEXT = (Path(__file__).parents[3] / "docs" / "topology.md").read_text()


def test_the_table_has_every_source_in_order_of_precedence() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE) == [source.name for source in SOURCES]


def test_every_label_is_named() -> None:
    words = set(re.findall(r"`([^`]+)`", TEXT))
    for key in _KEYS:
        assert key in words or re.split(r"/|rdma\.|gce-topology-", key)[-1] in words, key


def test_the_errors_of_programs_are_named() -> None:
    assert f"({', '.join(map(str, sorted(PROGRAM_XIDS)))})" in TEXT
