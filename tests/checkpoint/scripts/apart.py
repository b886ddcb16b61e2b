"""``apart.py stages|apart|own|unlike FOLDER``: two ranks that do not have the same, or not the same luck."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tlaunch.checkpoint.catalog import Keep, committed
from tlaunch.checkpoint.checkpointer import Checkpointer
from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.files import LocalFiles

WITHIN = 30.0
"""Seconds, far less than savers wait for a rank that says nothing."""

RANK = int(os.environ["RANK"])


def stage(name: str, value: float) -> dict[str, Any]:
    """Make a stage of a pipeline, with two groups of parameters of its own."""
    model = nn.ModuleDict({name: nn.Linear(4, 3)})
    groups = [{"params": [model[name].weight], "lr": 0.5}, {"params": [model[name].bias], "lr": 0.25}]
    optimizer = torch.optim.AdamW(groups)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.fill_(value + index)
            parameter.grad = torch.full_like(parameter, value)
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def numbers(state: dict[str, Any]) -> list[torch.Tensor]:
    """Return all numbers of a stage."""
    found = [parameter.detach().clone() for parameter in state["model"].parameters()]
    return found + [value.clone() for kept in state["optimizer"].state.values() for value in kept.values()]


def stages(folder: str) -> None:
    """Save and restore stages under names of their own; under one name they are refused."""
    with Checkpointer(folder) as checkpointer:
        saved = stage(f"stage{RANK}", 1.0 + RANK)
        assert checkpointer.save(1, saved).result(WITHIN)
        other = stage(f"stage{RANK}", 7.0)
        assert checkpointer.restore(other) == 1
        assert all(map(torch.equal, numbers(other), numbers(saved)))
        assert [group["lr"] for group in other["optimizer"].param_groups] == [0.5, 0.25]
        with pytest.raises(Unusable, match=r"missing in the checkpoint: .*new"):
            checkpointer.restore(stage("new", 1.0))
        if RANK == 0:
            fewer: dict[str, Any] = {"model": other["model"], "optimizer": other["optimizer"], "odd": 1}
        else:
            fewer = {"model": other["model"], "optimizer": other["optimizer"]}
        before = numbers(other)
        with pytest.raises(CheckpointError, match="missing in the checkpoint: odd"):
            checkpointer.restore(fewer)
        assert all(map(torch.equal, numbers(other), before))
        with pytest.raises(Unusable, match=r"ranks 0 and 1 hold different numbers under this name; expected replicas"):
            checkpointer.save(2, stage("stage", 1.0 + 5 * RANK))
        assert checkpointer.save(3, saved).result(WITHIN)


def apart(folder: str) -> None:
    """Skip a step on one rank, fail to save another there, and see what becomes of it on the other rank."""
    files = LocalFiles(folder)
    with Checkpointer(folder, busy="skip", keep=Keep(last=1)) as checkpointer:
        state: dict[str, Any] = {"a": torch.ones(64), "b": torch.ones(64), "value": 1}
        assert checkpointer.save(10, state).result(WITHIN)

        taken = [checkpointer._saving.free_buffer(wait=False) for _ in range(2)] if RANK == 1 else []
        assert checkpointer.save(20, state).result(WITHIN) is False  # on both ranks
        for buffer in taken:
            assert buffer is not None
            checkpointer._saving.free(buffer)
        dist.barrier()

        if RANK == 1:
            with pytest.raises(Unusable, match=r"value: a builtins\.object has no representation"):
                checkpointer.save(30, {**state, "value": object()})
        else:
            with pytest.raises(CheckpointError, match=r"step 30 is not committed: rank 1 could not write .* value: a "):
                checkpointer.save(30, state).result(WITHIN)
        dist.barrier()

        blocked = Path(folder, f"step-000000040.g{checkpointer.generation:05d}/rank-00001.safetensors/x")
        if RANK == 0:
            blocked.mkdir(parents=True)
        dist.barrier()
        reason = r"rank-00001\.safetensors: writing a shard failed: (Is a directory|File exists)"
        with pytest.raises(CheckpointError, match=reason):
            checkpointer.save(40, state).result(WITHIN)
        dist.barrier()
        assert committed(files)[-1].step == 10

        for step in (20, 30, 40):
            left = [name for name in files.names(f"step-{step:09d}.g00001") if "absent" not in name]
            assert left in ([], ["rank-00001.safetensors"]), left  # the folder that is in the way
        assert checkpointer.save(20, state).result(WITHIN) is False, "what was given up stays so"
        dist.barrier()
        assert checkpointer.save(50, state).result(WITHIN)
    dist.barrier()
    assert files.names() == ["generation-00000001.json", "step-000000050.g00001"]


def own(folder: str) -> None:
    """Save what each rank has for itself, which changes on one of them: nobody waits for the other to save as well."""
    with Checkpointer(folder) as checkpointer:
        mine: dict[str, Any] = {"position": 0, "seen": torch.zeros(2)}
        state: dict[str, Any] = {"x": torch.ones(64), "sampler": {str(RANK): mine}}
        assert checkpointer.save(1, state).result(WITHIN)
        if RANK == 1:
            mine |= {"shuffle": {"seed": 7}, "seen": torch.ones(3), "buffer": torch.ones(5)}
        first = checkpointer.save(2, state)  # would never come back
        dist.barrier()
        assert first.result(WITHIN)
        if RANK == 1:
            del mine["shuffle"], mine["position"]
        assert checkpointer.save(3, state).result(WITHIN)
        if RANK == 1:
            mine["seen"].zero_()
        assert checkpointer.restore(state) == 3
        assert mine["seen"].tolist() == [RANK] * (2 + RANK)
        assert list(mine) == (["seen", "buffer"] if RANK else ["position", "seen"])


def unlike(folder: str) -> None:
    """Begin with what one rank cannot save, and with what the ranks do not have alike: all know of it at once."""
    with pytest.raises(Unusable, match=r"every: rank 0 was given 1 and rank 1 2; expected the same"):
        Checkpointer(folder, every=1 + RANK)
    with Checkpointer(folder) as checkpointer:
        since = time.monotonic()
        state: dict[str, Any] = {"w": torch.ones(4), "value": 1}
        if RANK == 1:
            with pytest.raises(Unusable, match=r"^value: a builtins\.function has no representation"):
                checkpointer.save(1, {**state, "value": unlike})
        else:
            with pytest.raises(Unusable, match=r"^another rank cannot save what it has: value: a builtins\.function"):
                checkpointer.save(1, state)
        for other, reason in (
            (
                torch.ones(4, dtype=torch.bfloat16),
                r"w: is F32 \[4\] on rank 0 and BF16 \[4\] on rank 1; expected the sa",
            ),
            (
                torch.ones(5),
                r"w: is F32 \[4\] on rank 0 and F32 \[5\] on rank 1; expected the same, or names of th",
            ),
            (1.0, r"w: is F32 \[4\] on rank 0 and no tensor on rank 1; expected the same"),
        ):
            with pytest.raises(Unusable, match=reason):
                checkpointer.save(2, {**state, "w": other} if RANK == 1 else state)
        assert time.monotonic() - since < WITHIN, "nobody waits for somebody who will not come"
        assert checkpointer.save(3, state).result(WITHIN)
        assert checkpointer.restore(state) == 3
        with pytest.raises(Unusable, match=r"step: rank 0 asks for 3, rank 1 for None; expected the same on all ranks"):
            checkpointer.restore(state, step=None if RANK else 3)


dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=RANK, world_size=2)
{"stages": stages, "apart": apart, "own": own, "unlike": unlike}[sys.argv[1]](sys.argv[2])
dist.destroy_process_group()
