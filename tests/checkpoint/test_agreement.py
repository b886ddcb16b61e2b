"""Who writes what: everything once, by somebody who has it, and little is said about it."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor import zeros as distributed_zeros
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.checkpoint.ranks import run_ranks
from tlaunch.checkpoint.agreement import Difference, First, Inventory, Share, agree, difference
from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.ranks import Ranks
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.slices import Box, holders

T = TypeVar("T")

NAMES = ["model.a", "model.b", "model.c", "data.0", "data.0.more", "data.1", "note", "seen.x.y"]
Sampled = Mapping[str, "tuple[float, ...]"]


class Together:
    """One of several ranks, all of which are here: says what the others say."""

    def __init__(self, rank: int, inventories: Sequence[Inventory], samples: Sequence[Sampled]) -> None:
        self.rank, self.world = rank, len(inventories)
        self._inventories, self._samples = inventories, samples

    def from_first(self, make: object) -> First:
        del make
        mine = self._inventories[0]
        placed = frozenset(name for name, _ in mine.placed)
        return First(tuple(mine.boxes.items()), mine.values, placed, self._samples[0])

    def everybody(self, mine: T) -> list[T]:
        first = self.from_first(None)
        said = [difference(first, *each) for each in zip(self._inventories, self._samples, strict=True)]
        assert said[self.rank] == mine
        return cast("list[T]", said)


def shares(inventories: Sequence[Inventory], samples: Sequence[Sampled] | None = None) -> list[Share]:
    """Let all ranks agree."""
    samples = samples or [{} for _ in inventories]
    return [
        agree(
            cast("Ranks", Together(rank, inventories, samples)),
            mine,
            samples[rank],
            [*(name for name, _ in mine.boxes if not name.startswith("model")), *mine.values],
            frozenset({f"ranks.{rank}"}),
        )
        for rank, mine in enumerate(inventories)
    ]


def box(name: str, row: int = 0) -> Box:
    return name, Region((row,), (1,))


held_by_one = st.tuples(
    st.dictionaries(st.tuples(st.sampled_from(NAMES), st.integers(0, 2)), st.just(0), max_size=12),
    st.sets(st.sampled_from([f"{name}.value" for name in NAMES])),
)


@given(st.lists(held_by_one, min_size=1, max_size=5))
def test_everything_is_written_once_by_one_who_has_it(told: list[tuple[dict[tuple[str, int], int], set[str]]]) -> None:
    inventories = [
        Inventory({box(*each): 8 + len(each[0]) for each in boxes}, {}, tuple(sorted(values))) for boxes, values in told
    ]
    found = shares(inventories)
    for share, mine in zip(found, inventories, strict=True):
        assert share.boxes <= mine.boxes.keys()
        assert share.values <= set(mine.values)
    assert Counter(each for share in found for each in share.boxes) == Counter(
        {each for mine in inventories for each in mine.boxes}
    )
    assert Counter(each for share in found for each in share.values) == Counter(
        {each for mine in inventories for each in mine.values}
    )
    for rank, share in enumerate(found):
        for own in share.own - {f"ranks.{rank}"}:
            others = {name for other, mine in enumerate(inventories) if other != rank for name, _ in mine.boxes}
            others |= {name for other, mine in enumerate(inventories) if other != rank for name in mine.values}
            assert not [name for name in others if f"{name}.".startswith(f"{own}.")]


def test_what_only_one_rank_has_is_its_own_from_the_shortest_name_on() -> None:
    inventories = [
        Inventory({box("model.x"): 4, box("data.0.seen"): 4, box("note"): 4}, {}, ("data.0.state.a", "epoch")),
        Inventory({box("model.y"): 4, box("data.1.seen"): 4}, {}, ("data.1.state.a", "epoch", "odd.one")),
    ]
    assert [share.own for share in shares(inventories)] == [
        {"ranks.0", "data.0", "note"},
        {"ranks.1", "data.1", "odd"},
    ]


def test_replicas_are_spread_evenly_and_hardly_say_a_word() -> None:
    world, many = 16, 400
    mine = Inventory({box(f"model.{index}"): 1000 + index for index in range(many)}, {}, ("epoch",))
    found = shares([mine] * world)
    written = [sum(mine.boxes[each] for each in share.boxes) for share in found]
    assert max(written) - min(written) <= 1000 + many
    first = Together(0, [mine] * world, [{}] * world).from_first(None)
    assert len(pickle.dumps(difference(first, mine, {}))) < 200


def test_replicas_of_a_sharded_tensor_are_spread_too_and_are_not_spoken_of() -> None:
    groups = [(0, 2), (1, 3)]
    inventories = [
        Inventory(
            {},
            {(f"model.{index}", Region((rank % 2,), (1,))): (100, groups[rank % 2]) for index in range(50)}
            | {(f"empty.{index}", Region((2,), (0,))): (0, ()) for index in range(3)},
            (),
        )
        for rank in range(4)
    ]
    found = shares(inventories)
    assert [len(share.boxes) for share in found] == [25, 25, 25, 25]
    assert len(set().union(*(share.boxes for share in found))) == 100
    first = Together(0, inventories, [{}] * 4).from_first(None)
    assert difference(first, inventories[3], {}) == Difference(expected=2500)


def test_a_mesh_of_all_ranks_tells_who_has_the_same_box() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=8)
    try:
        mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("replica", "shard"))
        replicated, sharded = Replicate(), Shard(0)
        for rows, placements, expected in (
            (8, (replicated, sharded), (1, 5)),
            (8, (replicated, replicated), tuple(range(8))),
            (8, (sharded, sharded), (5,)),
            (1, (replicated, sharded), ()),  # this rank has nothing of it
            (0, (replicated, sharded), (0,)),  # nobody has, and one writes that
        ):
            tensor = distributed_zeros((rows, 3), device_mesh=mesh, placements=placements)
            assert holders(tensor, 8) == expected
        part = distributed_zeros((8, 3), device_mesh=mesh["shard"], placements=[sharded])
        assert holders(part, 8) is None, "there is another mesh like it"
    finally:
        dist.destroy_process_group()


def test_ranks_that_call_different_tensors_by_one_name_are_named() -> None:
    mine = Inventory({box("model.a"): 4}, {}, ())
    same, other, nearly = {"model.a": (1.0, 2.0)}, {"model.a": (-1.0, 5.0)}, {"model.a": (1.0, 2.001)}
    shares([mine] * 3, [same, nearly, same])
    with pytest.raises(Unusable, match=r"model\.a: ranks 0 and 2 hold different numbers under this name"):
        shares([mine] * 3, [same, same, other])


@pytest.mark.slow
def test_what_a_rank_has_for_itself_changes_without_the_others(tmp_path: Path) -> None:
    run_ranks("apart.py", (2, ("own", str(tmp_path / "own"))), folder=tmp_path)
