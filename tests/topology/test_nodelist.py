"""Slurm's node lists, against an enumerator that works the other way round."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlaunch.topology.model import TopologyError
from tlaunch.topology.nodelist import expand


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gb01", ["gb01"]),
        ("gb[01-03,20],x7", ["gb01", "gb02", "gb03", "gb20", "x7"]),
        ("a[1-2]b[3-4]", ["a1b3", "a1b4", "a2b3", "a2b4"]),
        ("r[1-2]n[08-10]-ib", [f"r{r}n{n}-ib" for r in (1, 2) for n in ("08", "09", "10")]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("n[3,1-2]", ["n3", "n1", "n2"]),
        ("a, b", ["a", "b"]),
        ("10.140.71.103,gb300_b[0-1]", ["10.140.71.103", "gb300_b0", "gb300_b1"]),
        ("a,a", ["a", "a"]),
    ],
)
def test_what_lists_mean(text: str, names: list[str]) -> None:
    assert list(expand(text, "list")) == names


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' does not name a node"),
        ("a,,b", "'' does not name a node"),
        ("gb[01-18", "'gb[01-18' has a bracket that is not closed"),
        ("gb01-18]", "'gb01-18]' has a bracket too many"),
        ("gb[1-[2-3]]", "'gb[1-[2-3]]' has a bracket too many"),
        ("gb[]", "'gb[]': '' is no number or range"),
        ("gb[1-]", "'gb[1-]': '1-' is no number or range"),
        ("gb[a-c]", "'gb[a-c]': 'a-c' is no number or range"),
        ("gb[9-1]", "'gb[9-1]': 9-1 counts down"),
        ("gb 1", "'gb 1' does not name a node"),
        ("gb[1-2]/x", "'gb[1-2]/x': 'gb1/x' does not name a node"),
        ("gb[٣]", "'gb[٣]': '٣' is no number or range"),
    ],
)
def test_what_is_no_list(text: str, problem: str) -> None:
    with pytest.raises(TopologyError) as error:
        expand(text, "SLURM_JOB_NODELIST")
    assert str(error.value) == f"SLURM_JOB_NODELIST: {problem}; expected a list such as gb[01-18,20],x7"


@pytest.mark.parametrize("text", ["n[0-999999999]", "a[0-999]b[0-999]", "a[0-99999],b", "a[0-9999]b[0-9]c[0-9]"])
def test_lists_that_would_fill_the_memory(text: str) -> None:
    with pytest.raises(TopologyError, match=r"names more than 100000 nodes; expected fewer$"):
        expand(text, "list")


def test_a_list_that_is_too_long_to_be_one() -> None:
    with pytest.raises(TopologyError, match="longer than 1 MiB"):
        expand("a," * (1 << 20), "list")


@st.composite
def written(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Draw names, and a list that stands for them: the names come first, the brackets are put around them."""
    texts, names = [], []
    for _ in range(draw(st.integers(1, 3))):
        pieces: list[list[str]] = [[draw(st.sampled_from(["gb", "n", "rack-a.", "x1-"]))]]
        text = pieces[0][0]
        for _ in range(draw(st.integers(0, 2))):
            width = draw(st.integers(1, 3))
            runs = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=3))
            numbers = [f"{first + step:0{width}}" for first, more in runs for step in range(more + 1)]
            spans = [
                f"{first:0{width}}-{first + more}" if more or draw(st.booleans()) else f"{first:0{width}}"
                for first, more in runs
            ]
            tail = draw(st.sampled_from(["", "b", "-ib"]))
            text += f"[{','.join(spans)}]{tail}"
            pieces += [numbers, [tail]]
        texts.append(text)
        names += ["".join(parts) for parts in itertools.product(*pieces)]
    return ",".join(texts), names


@given(written())
def test_every_list_means_what_it_was_written_for(drawn: tuple[str, list[str]]) -> None:
    text, names = drawn
    assert list(expand(text, "list")) == names


@given(st.text(alphabet="ab01[]-, .", max_size=20))
def test_anything_is_names_or_one_line(text: str) -> None:
    with contextlib.suppress(TopologyError):  # whatever else would end the test
        names = expand(text, "list")
        assert names
        assert not any(letter in name for name in names for letter in "[], ")
