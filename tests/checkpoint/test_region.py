from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlaunch.checkpoint.region import Region, missing_part

Shape = tuple[int, ...]


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Shape, Region, Region]:
    """Draw a shape and two boxes in it, neither of them empty."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))

    def box() -> Region:
        offset = tuple(draw(st.integers(0, size - 1)) for size in shape)
        sizes = tuple(draw(st.integers(1, size - start)) for size, start in zip(shape, offset, strict=True))
        return Region(offset, sizes)

    return shape, box(), box()


def cells(shape: Shape, region: Region) -> np.ndarray:
    """Mark the elements of a box."""
    marked = np.zeros(shape, dtype=bool)
    marked[tuple(slice(a, a + n) for a, n in zip(region.offset, region.shape, strict=True))] = True
    return marked


@given(boxes())
def test_an_intersection_is_what_both_share(drawn: tuple[Shape, Region, Region]) -> None:
    shape, one, other = drawn
    both = cells(shape, one) & cells(shape, other)
    shared = one.intersection(other)
    assert shared == other.intersection(one)
    if shared is None:
        assert not both.any()
    else:
        assert (cells(shape, shared) == both).all()
        assert shared.relative_to(one).within(one.shape)


@given(boxes())
def test_runs_are_the_elements_in_order(drawn: tuple[Shape, Region, Region]) -> None:
    shape, box, _ = drawn
    flat = [index for first, count in box.runs(shape) for index in range(first, first + count)]
    assert flat == np.flatnonzero(cells(shape, box)).tolist()


def test_whole_tensors_are_one_run() -> None:
    assert list(Region.whole((3, 4)).runs((3, 4))) == [(0, 12)]
    assert list(Region((1, 0), (2, 4)).runs((3, 4))) == [(4, 8)]
    assert list(Region.whole(()).runs(())) == [(0, 1)]
    assert list(Region.whole((0, 4)).runs((0, 4))) == []


@given(boxes(), st.data())
def test_parts_make_up_a_tensor_exactly_when_each_element_is_there_once(
    drawn: tuple[Shape, Region, Region], data: st.DataObject
) -> None:
    shape = drawn[0]
    # Cut at random places, then perhaps lose a part or hold one twice.
    parts = [Region.whole(shape)]
    for _ in range(data.draw(st.integers(0, 4)) if shape else 0):
        box = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        dim = data.draw(st.integers(0, len(shape) - 1))
        cut = data.draw(st.integers(0, box.shape[dim]))
        for start, size in ((0, cut), (cut, box.shape[dim] - cut)):
            offset = tuple(o + start * (d == dim) for d, o in enumerate(box.offset))
            parts.append(Region(offset, tuple(size if d == dim else n for d, n in enumerate(box.shape))))
    assert missing_part(shape, parts) is None
    changed = [part for part in parts if part.volume]
    victim = data.draw(st.sampled_from(changed))
    lost = [part for part in changed if part is not victim]
    assert f"{victim.volume} of {math.prod(shape)} elements are missing" == missing_part(shape, lost)
    assert "overlap" in str(missing_part(shape, [*changed, victim]))


def test_as_many_elements_as_wanted_but_not_the_right_ones() -> None:
    assert missing_part((4, 2), [Region((0, 0), (2, 2)), Region((1, 0), (2, 2))]) == (
        "the slices at [0, 0] and [1, 0] overlap"
    )


@pytest.mark.parametrize("box", [Region((3,), (2,)), Region((-1,), (2,)), Region((0, 0), (1, 1))])
def test_a_part_outside_of_the_tensor(box: Region) -> None:
    assert "lies outside of [4]" in str(missing_part((4,), [box]))
