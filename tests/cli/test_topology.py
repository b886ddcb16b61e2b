from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Tlaunch


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def test_show_draws_what_a_file_describes(tlaunch: Tlaunch, here: Path) -> None:
    (here / "two.yaml").write_text("gpus: 2\nracks:\n  left: a-[1-2]\n  right: b-[1-3]\n")
    code, out, err = tlaunch("topology", "show", "two.yaml")
    assert (code, err) == (0, "")
    assert "left | 2 x 2 = 4 slots" in out
    assert out.endswith("2 racks, 5 nodes, 10 slots\n")


def test_plan_shows_where_the_ranks_go(tlaunch: Tlaunch) -> None:
    code, out, err = tlaunch("topology", "plan", "nvl72", "--spares", "8", "--mesh", "dp=8,tp=8")
    assert (code, err) == (0, "")
    assert "64 ranks, 8 spares" in out
    assert "8 of 8 groups of tp=8 in one NVLink domain each" in out


def test_plan_says_what_the_job_survives(tlaunch: Tlaunch) -> None:
    words = ("topology", "plan", "nvl72", "--nodes", "36", "--spares", "8/rack", "--mesh", "dp=16,tp=8")
    out = tlaunch(*words)[1]
    assert (
        "survives, by swaps within a rack:\n- any 8 GPUs in each rack\n- any 2 nodes in each rack\n- no whole rack"
        in out
    )
    assert "- any 16 GPUs in all" in tlaunch(*words, "--swap-scope", "any")[1]


def test_plan_as_json_and_as_svg(tlaunch: Tlaunch, here: Path) -> None:
    words = ("topology", "plan", "nvl72", "--spares", "8", "--mesh", "dp=8,tp=8", "--bad", "node-03,node-00/gpu-1")
    code, out, err = tlaunch(*words, "--json", "--svg", "plan.svg")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["bad"] == ["node-00/gpu-1", *(f"node-03/gpu-{index}" for index in range(4))]
    assert said["unmet"] == ["3 of 8 spares: the other slots are bad"]
    assert (here / "plan.svg").read_text().startswith("<svg ")


def test_plan_in_a_pipe_has_no_colour_and_keeps_to_the_width(tlaunch: Tlaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = tlaunch("topology", "plan", "nvl72", "--spares", "8", "--mesh", "dp=8,tp=8")[1]
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 40
    assert all(f"node-{index:02d}" in out for index in range(18))


def test_plan_takes_a_part_of_the_machine(tlaunch: Tlaunch) -> None:
    out = tlaunch("topology", "plan", "nvl72", "--nodes", "2", "--gpus-per-node", "1")[1]
    assert "mesh dp=2" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "plan nvl72 --spares 9 --mesh dp=8,tp=8",
            (
                "--mesh dp=8,tp=8: needs 64 ranks, but 72 slots (18 nodes x 4) less 9 spares leave 63; "
                "expected --spares 8, or a mesh of 63"
            ),
        ),
        (
            "plan nvl72 --bad node-99",
            "--bad node-99: expected a node or a GPU of the machine, such as node-00/gpu-0",
        ),
        (
            "plan nvl72 --bad node-00/gpu-4",
            "--bad node-00/gpu-4: expected a node or a GPU of the machine, such as node-00/gpu-0",
        ),
        (
            "plan nvl72 --bad node-00/four",
            "--bad node-00/four: expected a node or a GPU of the machine, such as node-00/gpu-0",
        ),
        ("plan nvl72 --bad ,", "--bad : expected a node or a GPU of the machine, such as node-00/gpu-0"),
        (
            "plan nvl72 --svg /nowhere/plan.svg",
            "--svg /nowhere/plan.svg: cannot write it: No such file or directory; expected the name of a file",
        ),
        ("plan nvl72 --swap-scope galaxy", "--swap-scope: expected node, domain, rack or any, got 'galaxy'"),
        (
            "plan nvl72 --spares 8 --mesh dp=8,tp=8 --bad node-00,node-01,node-02",
            (
                "mesh dp=8,tp=8 and 0 spares need 64 slots, but 18 nodes have 72 slots, 60 of them healthy; "
                "with 0 spares the largest mesh that fits is dp=7,tp=8"
            ),
        ),
        ("plan", "topology: expected a YAML file, or a known name such as nvl72"),
        ("show nvl27", "'nvl27' is neither a file nor a shipped topology; did you mean 'nvl72'?"),
    ],
)
def test_mistakes_are_one_line(tlaunch: Tlaunch, words: str, line: str) -> None:
    assert tlaunch("topology", *words.split()) == (2, "", f"tlaunch: {line}\n")
