"""``scontrol show topology``: its text, and a program that prints it, hangs or fails."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import pytest

from tlaunch.topology.discover.report import Coordinates, Report
from tlaunch.topology.discover.scontrol import parse, report
from tlaunch.topology.model import TopologyError

TREE = """\
SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=gb[01-02]
SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=gb[03-04]
SwitchName=s1 Level=1 LinkSpeed=1 Nodes=gb[01-04] Switches=leaf[1-2]
SwitchName=core Level=2 LinkSpeed=1 Nodes=gb[01-04] Switches=s1
"""
BLOCKS = """\
BlockName=gb300_b0 BlockIndex=0 Nodes=10.140.71.103,10.140.88.115 BlockSize=2
BlockName=gb300_b1 BlockIndex=1 Nodes=10.140.79.152,10.140.93.120 BlockSize=2
AggregatedBlock=gb300_b[0-1] BlockIndex=2 Nodes=10.140.71.103,10.140.79.152,10.140.88.115,10.140.93.120 BlockSize=4
"""


def test_a_tree() -> None:
    assert parse(TREE).nodes == {
        "gb01": Coordinates("s1", "leaf1"),
        "gb02": Coordinates("s1", "leaf1"),
        "gb03": Coordinates("s1", "leaf2"),
        "gb04": Coordinates("s1", "leaf2"),
    }


def test_a_leaf_below_two_spines() -> None:
    text = TREE + "SwitchName=s2 Level=1 LinkSpeed=1 Nodes=gb[03-04] Switches=leaf2\n"
    nodes = parse(text).nodes
    assert [nodes[name].pod for name in ("gb01", "gb03")] == ["s1", "s1-s2"]


def test_blocks_and_groups_of_them() -> None:
    nodes = parse(BLOCKS).nodes
    assert nodes["10.140.88.115"] == Coordinates("gb300_b0-gb300_b1", "gb300_b0", "gb300_b0")
    assert nodes["10.140.93.120"] == Coordinates("gb300_b0-gb300_b1", "gb300_b1", "gb300_b1")


def test_the_smallest_group_of_blocks_counts() -> None:
    text = BLOCKS + "AggregatedBlock=all BlockIndex=3 Nodes=10.140.71.103,a,b,c,d BlockSize=8\n"
    nodes = parse(text).nodes
    assert nodes["10.140.71.103"].pod == "gb300_b0-gb300_b1"
    assert nodes["a"] == Coordinates("all")


def test_empty_switches_and_silence() -> None:
    assert parse("SwitchName=s0 Level=0 LinkSpeed=1 Nodes=(null)\n\nBlockName=b Nodes= BlockSize=2").nodes == {}
    assert parse("") == Report("scontrol", "scontrol show topology")


def test_unknown_records_are_left_out_and_named() -> None:
    told = parse("RingName=r1 Nodes=a\nRingName=r2 Nodes=b\n")
    assert (told.nodes, told.notes) == ({}, ("unknown level 'RingName': it is left out",))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            TREE + "SwitchName=leaf3 Level=0 Nodes=gb02",
            "line 5: gb02: rack: is leaf1 and leaf3; expected every node in",
        ),
        ("BlockName=a Nodes=x\nBlockName=b Nodes=x", "line 2: x: block: is a and b; expected every node in one block"),
        ("SwitchName=s Nodes=a", "line 1: Level: expected a number, got ''"),
        ("SwitchName=a/b Level=0 Nodes=a", "line 1: SwitchName: 'a/b' cannot be a name; expected letters"),
        ("SwitchName=s Level=0 Nodes=a[", "line 1: 'a[' has a bracket that is not closed; expected a list such as"),
        ("hello", "line 1: 'hello': expected SwitchName=... or BlockName=..."),
    ],
)
def test_nonsense_is_one_line(text: str, line: str) -> None:
    with pytest.raises(TopologyError) as error:
        parse(text)
    assert str(error.value).startswith(f"scontrol show topology: {line}")


def program(folder: Path, script: str) -> dict[str, str]:
    """Make an ``scontrol``; returns an environment in which it is found."""
    path = folder / "scontrol"
    path.write_text("#!/bin/sh\n" + dedent(script))
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_program_is_asked(tmp_path: Path) -> None:
    environ = program(tmp_path, f"[ \"$*\" = 'show topology' ] && cat <<'E'\n{TREE}\nE\n")
    told = report(environ)
    assert told is not None
    assert told.nodes["gb04"] == Coordinates("s1", "leaf2")


def test_without_the_program_nothing_is_said(tmp_path: Path) -> None:
    assert report({"PATH": str(tmp_path)}) is None


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo 'slurm_load_topo error: Unable to contact' >&2; exit 1", "exit code 1: slurm_load_topo error: Unable"),
        ("exit 3", "exit code 3: silent"),
        ("exec sleep 60", "no answer within 0.2 s"),
        ("sleep 60; :", "no answer within 0.2 s"),
    ],
)
def test_a_program_that_does_not_answer_is_a_note(tmp_path: Path, script: str, note: str) -> None:
    told = report(program(tmp_path, script), deadline=0.2 if "sleep" in script else 10)
    assert told is not None
    assert told.nodes == {}
    assert told.notes[0].startswith(note)


def test_a_program_that_cannot_be_run_is_a_note(tmp_path: Path) -> None:
    environ = program(tmp_path, "")
    (tmp_path / "scontrol").write_text("#!/no/such/shell\n")
    told = report(environ)
    assert told is not None
    assert told.notes == ("cannot be run: No such file or directory",)


def test_an_answer_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"^scontrol show topology: line 2: not UTF-8; expected text$"):
        report(program(tmp_path, r"printf 'a=b\n\377\n'"))
