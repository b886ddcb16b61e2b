"""Tensors are streamed in small pieces, in the order of their elements, however they were sliced."""

from __future__ import annotations

import itertools
import math

import pytest

from tlaunch.checkpoint import source
from tlaunch.checkpoint.manifest import Slice, Tensor
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.source import boxes, stream


class Memory:
    """Files in memory, one for each slice."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def fill(self, file: int, begin: int, out: memoryview) -> None:
        out[:] = self.files[file][begin : begin + len(out)]


def cut(shape: tuple[int, ...], dim: int, at: int) -> tuple[Tensor, Memory]:
    """Make a tensor whose bytes count up, cut in two along a dimension."""
    whole = bytes(range(math.prod(shape)))
    slices: list[Slice] = []
    files: list[bytes] = []
    for begin, end in ((0, at), (at, shape[dim])):
        offset = tuple(begin if each == dim else 0 for each in range(len(shape)))
        region = Region(offset, tuple(end - begin if each == dim else size for each, size in enumerate(shape)))
        slices.append(Slice(len(files), 3, region))
        files.append(b"..." + b"".join(whole[first : first + count] for first, count in region.runs(shape)))
    return Tensor("U8", shape, tuple(slices)), Memory(files)


@pytest.mark.parametrize("at_once", [1, 5, 7, 12, 1000])
@pytest.mark.parametrize("shape", [(11,), (7, 5), (3, 4, 5), (2, 1, 3, 7), (0, 4)])
def test_the_bytes_come_in_order(shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "AT_ONCE", at_once)
    for dim in range(len(shape)):
        for at in range(shape[dim] + 1):
            tensor, reader = cut(shape, dim, at)
            pieces = [bytes(piece) for piece in stream(tensor, reader)]
            assert b"".join(pieces) == bytes(range(math.prod(shape)))
            assert max(map(len, pieces)) <= at_once


def test_boxes_cover_each_element_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "AT_ONCE", 24)
    shape = (3, 5, 4)
    indices = [
        index
        for box in boxes(shape, 4)
        for index in itertools.product(
            *(range(begin, begin + size) for begin, size in zip(box.offset, box.shape, strict=True))
        )
    ]
    assert indices == list(itertools.product(*map(range, shape)))
    assert [box.shape for box in boxes((), 4)] == [()]
