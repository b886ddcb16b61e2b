"""The fewest replicas that make up for what each region lacks, against brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tlaunch.topology import covering
from tlaunch.topology.covering import cover

Offers = dict[int, dict[str, int]]

offers = st.dictionaries(
    st.integers(0, 9), st.dictionaries(st.sampled_from("abc"), st.integers(0, 4), max_size=3), min_size=1, max_size=9
)
lacks = st.dictionaries(st.sampled_from("abc"), st.integers(0, 6), max_size=3)


def suffices(lacks: dict[str, int], offers: Offers, chosen: tuple[int, ...]) -> bool:
    return all(sum(offers[each].get(region, 0) for each in chosen) >= count for region, count in lacks.items())


@given(lacks, offers)
def test_no_smaller_choice_exists(lacks: dict[str, int], offers: Offers) -> None:
    assume(suffices(lacks, offers, tuple(offers)))
    found = cover(lacks, offers, sorted(offers))
    assert found.exact
    assert suffices(lacks, offers, found.chosen)
    best = next(
        size
        for size in range(len(offers) + 1)
        if any(suffices(lacks, offers, chosen) for chosen in combinations(sorted(offers), size))
    )
    assert len(found.chosen) == best


def test_of_equal_replicas_the_first_in_order_go() -> None:
    offers = {replica: {"a": 4} for replica in range(6)}
    assert cover({"a": 7}, offers, [3, 5, 0, 1, 2, 4]).chosen == (3, 5)


SETS = {0: "abc", 1: "def", 2: "bcde"}


def test_the_largest_offer_is_not_always_right(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = {replica: dict.fromkeys(regions, 1) for replica, regions in SETS.items()}
    lacks = dict.fromkeys("abcdef", 1)
    assert cover(lacks, offers, range(3)) == covering.Cover((0, 1), exact=True)
    monkeypatch.setattr(covering, "STEPS", 0)
    assert cover(lacks, offers, range(3)) == covering.Cover((0, 1, 2), exact=False), "and it says that it is not proved"


def test_regions_with_nothing_in_common_are_searched_one_by_one() -> None:
    """Together these would be 3 ** 200 choices."""
    offers = {
        3 * part + replica: {f"{each}{part}": 1 for each in SETS[replica]} for part in range(200) for replica in SETS
    }
    found = cover({f"{region}{part}": 1 for region in "abcdef" for part in range(200)}, offers, range(600))
    assert found.exact
    assert len(found.chosen) == 400
