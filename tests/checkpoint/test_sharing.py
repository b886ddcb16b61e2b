"""The ranks of a node share the first reading: every block that one of them wants is read by one of them."""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.ranks import run_ranks
from tlaunch.checkpoint.manifest import BLOCK
from tlaunch.checkpoint.sharing import (
    LONGEST,
    Range,
    blocks,
    cuts,
    pack,
    pack_sums,
    share,
    union,
    unpack,
    unpack_sums,
)

BYTES = st.integers(0, 200 * BLOCK) | st.integers(0, 20).map(lambda count: count * BLOCK)
RANGES = st.lists(
    st.tuples(st.integers(0, 3), BYTES, BYTES).map(lambda three: Range(three[0], min(three[1:]), max(three[1:])))
)


def held(ranges: list[Range]) -> set[tuple[int, int]]:
    """Return the blocks that hold some of the bytes."""
    return {
        (one.file, block * BLOCK)
        for one in ranges
        if one.begin < one.end
        for block in range(one.begin // BLOCK, -(-one.end // BLOCK))
    }


@given(RANGES)
def test_a_union_holds_the_same_bytes_once(ranges: list[Range]) -> None:
    found = union(ranges)
    for before, after in pairwise(found):
        assert before.file < after.file or before.end < after.begin
    points = {(one.file, at) for one in chain(ranges, found) for at in (one.begin, one.end, one.end - 1)}
    for file, at in points:
        assert any(one.file == file and one.begin <= at < one.end for one in ranges) == any(
            one.file == file and one.begin <= at < one.end for one in found
        )


@given(RANGES, st.integers(1, 9))
def test_shares_are_all_blocks_once_and_alike(ranges: list[Range], parts: int) -> None:
    shares = [list(share(blocks(ranges), part, parts)) for part in range(parts)]
    read = [(one.file, begin) for mine in shares for one in mine for begin in range(one.begin, one.end, BLOCK)]
    assert sorted(read) == sorted(held(ranges))
    assert all(one.end - one.begin <= LONGEST for mine in shares for one in mine)
    sizes = [sum(one.end - one.begin for one in mine) // BLOCK for mine in shares]
    assert max(sizes) - min(sizes) <= 1
    assert read == sorted(read), "in the order of the files"


@given(RANGES.map(lambda ranges: [one for one in ranges if one.begin < one.end]))
def test_cuts_and_whole_blocks_are_all_that_is_wanted(ranges: list[Range]) -> None:
    found = cuts(ranges)
    assert found.keys() <= held(ranges)
    for (file, begin), parts in found.items():
        assert len(set(parts)) == len(parts)
        assert all(part.file == file and begin <= part.begin < part.end <= begin + BLOCK for part in parts)
    for one in ranges:
        for block in range(one.begin // BLOCK * BLOCK, one.end, BLOCK):
            part = Range(one.file, max(one.begin, block), min(one.end, block + BLOCK))
            assert (part in found.get((one.file, block), ())) == (part.end - part.begin < BLOCK)


@given(RANGES)
def test_what_is_told_arrives(ranges: list[Range]) -> None:
    assert list(unpack(pack(ranges))) == ranges
    sums = {one: index * 0x10000001 & 0xFFFFFFFF for index, one in enumerate(ranges)}
    assert dict(unpack_sums(pack_sums(sums))) == sums


@pytest.mark.slow
def test_three_ranks_of_one_node(tmp_path: Path) -> None:
    folder = str(tmp_path / "ck")
    run_ranks("share.py", (2, ("save", folder)), (3, ("load", folder)), folder=tmp_path)
