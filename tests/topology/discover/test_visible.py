from __future__ import annotations

import pytest

from tlaunch.topology.discover.report import Gpu
from tlaunch.topology.discover.visible import visible
from tlaunch.topology.model import TopologyError

GPUS = [Gpu(0, "GPU-8932f937"), Gpu(1, "GPU-89aa"), Gpu(2), Gpu(3, "GPU-f00d")]


@pytest.mark.parametrize(
    ("listed", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("3, 0", [3, 0]),
        ("GPU-f00d,1,GPU-8932", [3, 1, 0]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", [0]),
    ],
)
def test_the_order_is_that_of_the_list(listed: str | None, indices: list[int]) -> None:
    gpus, notes = visible(listed, GPUS)
    assert ([gpu.index for gpu in gpus], notes) == (indices, ())


@pytest.mark.parametrize(
    ("listed", "indices", "note"),
    [
        ("0,4,1", [0], "there is no GPU '4': CUDA uses only those before it"),
        ("GPU-89", [], "there is no GPU 'GPU-89': CUDA uses only those before it"),
        ("all", [], "there is no GPU 'all': CUDA uses only those before it"),
        ("1,1", [], "GPU '1' stands twice: CUDA then uses none"),
        ("1,GPU-89aa", [], "GPU 'GPU-89aa' stands twice: CUDA then uses none"),
    ],
)
def test_what_cuda_makes_of_mistakes(listed: str, indices: list[int], note: str) -> None:
    gpus, notes = visible(listed, GPUS)
    assert [gpu.index for gpu in gpus] == indices
    assert notes == (f"CUDA_VISIBLE_DEVICES: {note}",)


def test_parts_of_gpus_are_refused() -> None:
    with pytest.raises(TopologyError, match=r"^CUDA_VISIBLE_DEVICES: 'MIG-1b2c' is a part of a GPU \(MIG\); expected"):
        visible("0,MIG-1b2c", GPUS)
