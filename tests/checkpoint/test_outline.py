"""What is remembered from one save to the next never goes stale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tlaunch.checkpoint.arena import Arena
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.flat import expand, flatten
from tlaunch.checkpoint.outline import outline, parts_of

WITHIN = 60.0


def training() -> dict[str, Any]:
    """Make a training that has made a step."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    groups: list[dict[str, Any]] = [
        {"params": model[0].parameters()},
        {"params": model[2].parameters(), "lr": 0.5},
    ]
    optimizer = torch.optim.AdamW(groups)
    state = {"model": model, "optimizer": optimizer, "epoch": 0, "extra": {"mean": torch.zeros(2)}}
    step(state)
    return state


def step(state: dict[str, Any]) -> None:
    state["optimizer"].zero_grad()
    state["model"](torch.randn(5, state["model"][0].in_features)).square().mean().backward()
    state["optimizer"].step()
    state["epoch"] += 1
    state["extra"]["mean"] = state["extra"]["mean"] + 1  # another tensor each time


def lower_rate(state: dict[str, Any]) -> None:
    state["optimizer"].param_groups[1]["lr"] /= 2


def make_rate_a_tensor(state: dict[str, Any]) -> None:
    state["optimizer"].param_groups[0]["lr"] = torch.tensor(0.25)


def replace_a_parameter(state: dict[str, Any]) -> None:
    model, optimizer = state["model"], state["optimizer"]
    model[2] = nn.Linear(4, 4)
    optimizer.state.clear()
    optimizer.param_groups[1]["params"] = list(model[2].parameters())
    step(state)


def move_a_parameter(state: dict[str, Any]) -> None:
    weight = state["model"][0].weight
    weight.data = weight.data.clone() + 1


def tie_parameters(state: dict[str, Any]) -> None:
    model = state["model"]
    model.append(nn.Linear(4, 4, bias=False))
    model[3].weight = model[2].weight


def clear_the_optimizer(state: dict[str, Any]) -> None:
    state["optimizer"].state.clear()


def add_a_value(state: dict[str, Any]) -> None:
    state["note"] = "new"


def nothing(state: dict[str, Any]) -> None:
    del state


@pytest.mark.parametrize(
    "change",
    [
        nothing,
        lower_rate,
        make_rate_a_tensor,
        replace_a_parameter,
        move_a_parameter,
        tie_parameters,
        clear_the_optimizer,
        add_a_value,
    ],
)
def test_the_next_save_has_what_has_changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    state = training()
    with Checkpointer(tmp_path) as checkpointer:
        for number in (1, 2):
            assert checkpointer.save(number, state).result(WITHIN)
            step(state)
        change(state)
        assert checkpointer.save(3, state).result(WITHIN)
        again = training()
        if change is replace_a_parameter or change is tie_parameters or change is make_rate_a_tensor:
            change(again)
        if change is add_a_value:
            again["note"] = "old"
        if change is clear_the_optimizer:
            again["optimizer"].state.clear()
        assert checkpointer.restore(again) == 3
    expected, found = flatten(expand(state)), flatten(expand(again))
    assert expected.values == found.values
    assert expected.tensors.keys() == found.tensors.keys()
    assert all(torch.equal(expected.tensors[name], found.tensors[name]) for name in expected.tensors)


def test_values_are_read_from_where_they_live_after_going_back(tmp_path: Path) -> None:
    state = training()
    with Checkpointer(tmp_path) as checkpointer:
        for number in (1, 2):
            assert checkpointer.save(number, state).result(WITHIN)
        assert checkpointer.restore(state, step=1) == 1  # puts other groups into the optimizer, with the same tensors
        lower_rate(state)
        assert checkpointer.save(2, state).result(WITHIN)
        again = training()
        assert checkpointer.restore(again) == 2
    assert [group["lr"] for group in again["optimizer"].param_groups] == [0.001, 0.25]


def test_an_unchanged_state_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchanged(tmp_path, monkeypatch, training())


def test_an_optimizer_without_state_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = training()
    state["optimizer"] = torch.optim.SGD(state["model"].parameters())
    unchanged(tmp_path, monkeypatch, state)


def unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any]) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, state).result(WITHIN)
        step(state)
        monkeypatch.setattr("tlaunch.checkpoint.preparing.leaves_of", None)
        assert checkpointer.save(2, state).result(WITHIN)


class Halved(nn.Module):
    """Shows its state in another form than it has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_state_dict_post_hook(self._halve)  # type: ignore[no-untyped-call]

    @staticmethod
    def _halve(module: nn.Module, state: dict[str, Any], prefix: str, local: object) -> None:
        del module, local
        state[f"{prefix}weight"] = state[f"{prefix}weight"] / 2


class WithExtra(nn.Linear):
    """Has a state beside its tensors."""

    def get_extra_state(self) -> int:
        return 7

    def set_extra_state(self, state: object) -> None:
        assert state == 7


@pytest.mark.parametrize(
    ("module", "remembered"), [(nn.Linear(2, 2), True), (Halved(), False), (WithExtra(2, 2), False)]
)
def test_what_is_made_for_the_state_dict_is_asked_each_time(module: nn.Module, *, remembered: bool) -> None:
    parts = parts_of({"model": module})
    assert (outline(parts, flatten(expand(parts))) is not None) is remembered


def test_memory_that_is_too_small_is_gone_before_there_is_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def make(size: int) -> Arena:
        home = checkpointer._home
        assert home is not None
        files = [file for file in Path(f"/proc/{home.pid}/fd").iterdir() if "memfd:tlaunch" in str(file.readlink())]
        assert files
        held.extend(file.stat().st_size for file in files)
        return make_arena(size)

    make_arena = Arena.make
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"x": torch.ones(1 << 20)}).result(WITHIN)
        monkeypatch.setattr(Arena, "make", make)
        assert checkpointer.save(2, {"x": torch.ones(2 << 20)}).result(WITHIN)
    assert sorted(set(held)) == [0], "the saver would have kept it until it was given the next"


def test_a_state_that_grows_does_not_take_new_memory_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(size: int) -> Arena:
        made.append(size)
        return make_arena(size)

    make_arena = Arena.make
    monkeypatch.setattr(Arena, "make", make)
    with Checkpointer(tmp_path) as checkpointer:
        for number in range(16):
            assert checkpointer.save(number, {"x": torch.ones((4 << 20) + (number << 15))}).result(WITHIN)
    assert len(made) <= 4, "twice two"


def test_memory_is_twice_the_state_and_does_not_grow(tmp_path: Path) -> None:
    state = {"model": nn.Linear(1024, 1024)}
    size = 4 * 1024 * 1025
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.capacity == 0
        held = []
        for number in range(4):
            assert checkpointer.save(number, state).result(WITHIN)
            held.append(checkpointer.capacity)
    assert len(set(held)) == 1
    assert 2 * size <= held[0] <= 2 * (size + (1 << 20) + (1 << 16))
