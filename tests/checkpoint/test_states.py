"""States that training scripts really have: what was saved is what was there, and saving changes nothing of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import tlaunch.checkpoint
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.dcp import Writer
from tlaunch.checkpoint.errors import Damaged, Unusable

WITHIN = 60.0


def lazy() -> dict[str, torch.Tensor]:
    """Make tensors whose numbers are not what their bytes say, as torch puts some work off."""
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    return {"conjugate": numbers.conj(), "negative": numbers[:1].conj().imag}


@pytest.mark.parametrize("by", ["checkpointer", "dcp"])
def test_tensors_whose_bytes_are_not_their_numbers_yet(tmp_path: Path, by: str) -> None:
    state = lazy()
    assert state["conjugate"].is_conj()
    assert state["negative"].is_neg()
    assert all(tensor.is_contiguous() for tensor in state.values())
    if by == "dcp":
        with pytest.warns(UserWarning, match="assuming the intent is to save in a single process"):
            dcp_save(state, storage_writer=Writer(tmp_path, 1), no_dist=True)
    else:
        with Checkpointer(tmp_path) as checkpointer:
            assert checkpointer.save(1, state).result(WITHIN)
    back = {name: torch.zeros_like(tensor.resolve_conj().resolve_neg()) for name, tensor in state.items()}
    assert tlaunch.checkpoint.load(tmp_path, back) == 1
    assert all(torch.equal(back[name], state[name]) for name in state)


def after_one_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    optimizer.zero_grad()
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Rprop", "NAdam"])
def test_a_save_before_the_first_step_is_no_step(tmp_path: Path, kind: str) -> None:
    found = []
    for saved in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer: torch.optim.Optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
        if saved:
            with Checkpointer(tmp_path) as checkpointer:
                for step in (0, 1):
                    assert checkpointer.save(step, {"model": model, "optimizer": optimizer}).result(WITHIN)
        found.append(after_one_step(model, optimizer))
    assert all(map(torch.equal, *found))


def test_going_on_from_before_the_first_step(tmp_path: Path) -> None:
    found = []
    for restored in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        state = {"model": model, "optimizer": optimizer}
        with Checkpointer(tmp_path) as checkpointer:
            if restored:
                assert checkpointer.restore(state) == 0
            else:
                assert checkpointer.save(0, state).result(WITHIN)
        found.append(after_one_step(model, optimizer))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Rprop", "NAdam"])
@pytest.mark.parametrize("reason", ["misfit", "damage", "nothing"])
def test_a_restore_that_loads_nothing_into_an_optimizer_is_no_step(tmp_path: Path, kind: str, reason: str) -> None:
    found = []
    for restored in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer: torch.optim.Optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
        with Checkpointer(tmp_path) as checkpointer:
            if restored and reason == "misfit":
                with pytest.raises(Unusable, match="missing in the checkpoint: other"):
                    checkpointer.restore({"model": model, "optimizer": optimizer, "other": 1})
            elif restored and reason == "damage":
                (shard,) = tmp_path.glob("step-000000001.*/*.safetensors")
                shard.write_bytes(shard.read_bytes()[:-9])
                with pytest.raises(Damaged, match="this shard ends after"):
                    checkpointer.restore({"model": model, "optimizer": optimizer})
            elif restored:
                assert checkpointer.restore({"model": model, "optimizer": optimizer}, strict=False) == 1
            else:
                more = {} if reason == "nothing" else {"optimizer": optimizer}
                assert checkpointer.save(1, {"model": model, **more}).result(WITHIN)
        assert not optimizer.state
        found.append(after_one_step(model, optimizer))
    assert all(map(torch.equal, *found))


def test_mappings_of_a_kind_stay_of_that_kind(tmp_path: Path) -> None:
    def schedulers() -> list[Any]:
        optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.5)
        return [torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4, 4])]

    (saved,), (other,) = schedulers(), schedulers()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, {"scheduler": saved}).result(WITHIN)
        assert checkpointer.restore({"scheduler": other}) == 1
    assert type(other.milestones) is Counter
    assert other.milestones == Counter({2: 1, 4: 2})


def test_a_module_that_is_compiled_has_the_names_of_one_that_is_not(tmp_path: Path) -> None:
    def training(*, compiled: bool) -> dict[str, Any]:
        model = nn.Linear(4, 4)
        optimizer = torch.optim.AdamW(model.parameters())
        return {"model": torch.compile(model, backend="eager") if compiled else model, "optimizer": optimizer}

    saved, other = training(compiled=True), training(compiled=False)
    numbers = after_one_step(saved["model"], saved["optimizer"])
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, saved).result(WITHIN)
        assert checkpointer.restore(other) == 1
    assert all(map(torch.equal, other["model"].parameters(), numbers))
