from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tlaunch.launcher.control.__main__ import _placed
from tlaunch.launcher.control.config import AgentConfig
from tlaunch.topology.discover.report import Coordinates, Report
from tlaunch.topology.model import Node

CONFIG = AgentConfig(
    job="job",
    node=Node("node-03", 4, rack="rack-00", pod="north"),
    discover=True,
    host="127.0.0.1",
    log_dir=Path("/logs"),
    zygote=None,
    start="fresh",
    policy="mine:Policy",
    lifeline=7,
    module=True,
    argv=("train", "--steps", "3"),
)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, discover=False, module=False, zygote="/z", lifeline=None)])
def test_an_agent_reads_back_what_it_was_started_with(config: AgentConfig) -> None:
    assert AgentConfig.parse(config.command()) == config


def test_an_agent_finds_out_where_its_node_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = Report("nvml", "x", {"gb01": Coordinates(domain="c.1", slots=8)}, notes=("gpu 2: it needs a reset",))
    monkeypatch.setattr("tlaunch.topology.discover.nvml.report", lambda *_: known)
    monkeypatch.setenv("NODE_NAME", "gb01")
    monkeypatch.setenv("TLAUNCH_LABELS", "topology.kubernetes.io/rack=r7")
    with caplog.at_level(logging.INFO):
        assert _placed(CONFIG) == replace(CONFIG, node=Node("node-03", 4, "c.1", "r7", "north"))
    assert caplog.messages == ["nvml: gpu 2: it needs a reset", "domain c.1, rack r7, pod north"]
