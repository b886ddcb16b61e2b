from __future__ import annotations

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
        ("show nvl27", "'nvl27' is neither a file nor a shipped topology; did you mean 'nvl72'?"),
    ],
)
def test_mistakes_are_one_line(tlaunch: Tlaunch, words: str, line: str) -> None:
    assert tlaunch("topology", *words.split()) == (2, "", f"tlaunch: {line}\n")
