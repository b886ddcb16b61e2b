"""Restoring reads twice: first all that is wanted, to compare checksums, then straight into the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tlaunch.checkpoint import resharding, restoring
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.errors import Damaged
from tlaunch.checkpoint.manifest import BLOCK
from tlaunch.checkpoint.memory import is_plain, overlapping

WITHIN = 60.0
MANY = 3_000_000
"""Numbers of a tensor of many blocks."""


def flip(folder: Path, byte: int) -> None:
    """Change a bit of the only shard."""
    (shard,) = folder.glob("step-*/*.safetensors")
    data = bytearray(shard.read_bytes())
    data[byte] ^= 1
    shard.write_bytes(data)


def test_what_changes_between_the_two_readings_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        saved = {"a": torch.ones(1000), "b": torch.ones(MANY)}
        assert checkpointer.save(1, saved).result(WITHIN)
        state = {"a": torch.zeros(1000), "b": torch.zeros(MANY)}
        compare = resharding.compare

        def compare_and_change(*args: object, **more: object) -> object:
            sums = cast("Any", compare)(*args, **more)
            assert not state["a"].any(), "the first reading changes nothing"
            assert not state["b"].any()
            flip(tmp_path, BLOCK)
            return sums

        monkeypatch.setattr(restoring, "compare", compare_and_change)
        with pytest.raises(
            Damaged,
            match=r"rank-00000\.safetensors: bytes \d+ to \d+ have changed: their checksum does not fit; "
            "the state is partly loaded now",
        ):
            checkpointer.restore(state)


@pytest.mark.parametrize("byte", [-5, 200, BLOCK - 1, BLOCK])
def test_a_changed_bit_in_any_block_leaves_all_tensors_as_they_were(tmp_path: Path, byte: int) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        model = torch.nn.Linear(1000, 3000)
        assert checkpointer.save(1, {"model": model, "x": torch.ones(5), "n": 7}).result(WITHIN)
        flip(tmp_path, byte)
        other = torch.nn.Linear(1000, 3000)
        state: dict[str, Any] = {"model": other, "x": torch.zeros(5), "n": 0}
        before = [parameter.detach().clone() for parameter in other.parameters()]
        with pytest.raises(Damaged, match=r"rank-00000\.safetensors: bytes \d+ to \d+ have changed: their checksum"):
            checkpointer.restore(state)
        assert all(map(torch.equal, other.parameters(), before))
        assert not state["x"].any()
        assert state["n"] == 0


def test_tensors_of_any_strides_and_shared_memory(tmp_path: Path) -> None:
    big = torch.arange(float(MANY)).view(1000, 3000)
    saved = {
        "turned": big, "rows": big[::3].clone(), "one": torch.tensor(3.5), "none": torch.empty(0, 4),
        "conjugated": torch.tensor([1 + 2j, 3 - 4j]).conj(), "tied": torch.full((6,), 1.0),
        "again": torch.full((6,), 2.0),
        "end": torch.full((2,), 3.0), "few": torch.arange(6.0),
    }  # fmt: skip
    shared = torch.zeros(6)
    state = {
        "turned": torch.zeros(3000, 1000).t(), "rows": torch.zeros(667, 3000)[::2], "one": torch.zeros(3)[1],
        "none": torch.empty(0, 4), "conjugated": torch.zeros(2, dtype=torch.complex64).conj(), "tied": shared,
        "again": shared, "end": shared[4:], "few": torch.zeros(6, 2)[:, 1],
    }  # fmt: skip
    assert [name for name, tensor in state.items() if not is_plain(tensor)] == ["turned", "rows", "conjugated", "few"]
    assert overlapping(state) == ["tied", "again", "end"]
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, saved).result(WITHIN)
        assert checkpointer.restore(state) == 1
    for name in saved.keys() - {"tied", "again", "end"}:
        assert torch.equal(state[name].resolve_conj(), saved[name].resolve_conj()), name
    assert shared.tolist() == [2.0, 2.0, 2.0, 2.0, 3.0, 3.0], "the last one counts"
