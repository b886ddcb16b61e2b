"""Train a small byte-level GPT on the Python standard library's own source, with DistributedDataParallel.

An ordinary script for torchrun's environment; nothing here knows which launcher started it:

    tlaunch --nodes 3 --gpus-per-node 2 --spares 1 examples/gpt/train.py --steps 30
    torchrun --standalone --nproc-per-node 4 examples/gpt/train.py
    python examples/gpt/train.py

With torchrun's --max-restarts, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: in torch 2.13 a restarted group otherwise
finds the addresses of the dead one in the store that both use, and often fails or hangs.

Rank 0 writes a checkpoint every few steps, and a restarted run goes on from the newest one. The samples of a step
depend on its number only and each sample weighs the same, so the loss curve is the same for every world size and
across restarts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import checkpoint
from data import Corpus, share
from model import GPT, GPTConfig

_WARM_UP_STEPS = 10
_COLLECTIVE_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Run:
    """Who this process is in the job, from torchrun's environment; a process without one is a job of its own."""

    rank: int
    local_rank: int
    world_size: int
    restart_count: int
    run_id: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Run:
        """Read the variables that torchrun sets, with the values of a single process for those that are absent."""
        return cls(
            rank=int(environment.get("RANK", "0")),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            world_size=int(environment.get("WORLD_SIZE", "1")),
            restart_count=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
            run_id=environment.get("TORCHELASTIC_RUN_ID", "none"),
        )

    @property
    def is_fresh(self) -> bool:
        """Whether this is certainly the first start. torchrun calls every run without an id ``none``."""
        return self.run_id == "none" and self.restart_count == 0


@record
def main() -> None:
    """Parse the options, train, and leave the process group in order.

    After an error the group is not destroyed: that could wait for peers that are gone. The process ends instead.
    """
    options = parse_options()
    run = Run.from_environment(os.environ)
    torch.set_num_threads(1)
    device = join(run)
    train(options, run, device)
    dist.destroy_process_group()


def parse_options() -> argparse.Namespace:
    """Parse the command line; exit with 2 on a wrong option."""
    parser = argparse.ArgumentParser(description="Train a small byte-level GPT on the standard library's source.")
    parser.add_argument("--steps", type=int, default=200, help="train up to this step (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, default=64, help="sequences in a step, over all ranks (default: %(default)s)"
    )
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate after the warm-up (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the weights and the sample order (default: %(default)s)"
    )
    parser.add_argument(
        "--log-every", type=int, default=5, metavar="N", help="print each N-th loss (default: %(default)s)"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: gpt-checkpoint/<run id>")
    parser.add_argument("--checkpoint-every", type=int, default=10, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument(
        "--metrics", type=Path, metavar="FILE", help="append one JSON line for each start and each step"
    )
    options = parser.parse_args()
    for name in ("steps", "batch", "log_every", "checkpoint_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def join(run: Run) -> torch.device:
    """Form the process group and return this rank's device."""
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", run.local_rank), "nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT)
    else:
        alone = dist.HashStore()  # type: ignore[attr-defined]  # documented, but torch does not mark it as exported
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    return device


def train(options: argparse.Namespace, run: Run, device: torch.device) -> None:
    """Go on from the newest checkpoint, or from the start, up to ``options.steps``."""
    torch.manual_seed(options.seed)
    config = GPTConfig()
    model = GPT(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    corpus = Corpus.standard_library(config.block, options.seed)
    folder = options.checkpoint or Path("gpt-checkpoint", run.run_id)
    step = resume(folder, run, model, optimizer, keep=options.checkpoint is not None)
    log = Log(options.metrics, run, options.log_every)
    log.start(step)
    parallel = DistributedDataParallel(model, device_ids=[run.local_rank] if device.type == "cuda" else None)

    while step < options.steps:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (step + 1) / _WARM_UP_STEPS)
        inputs, targets = corpus.batch(share(step, options.batch, run.rank, run.world_size))
        loss = loss_share(parallel(inputs.to(device)), targets.to(device), options.batch)
        optimizer.zero_grad()
        # DDP averages over the ranks; times the world size, that average is the sum of the shares.
        (loss * run.world_size).backward()
        optimizer.step()
        step += 1
        total = loss.detach()
        dist.reduce(total, dst=0)
        if run.rank == 0:
            log.step(step, total.item(), last=step == options.steps)
            if step % options.checkpoint_every == 0 or step == options.steps:
                checkpoint.save(folder, step, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def loss_share(logits: Tensor, targets: Tensor, batch: int) -> Tensor:
    """This rank's part of the mean loss over ``batch`` sequences; the parts of all ranks add up to it.

    An empty share gives 0 with zero gradients, so that its rank still takes part in the all-reduce.
    """
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return total / (batch * targets.shape[1])


def resume(folder: Path, run: Run, model: GPT, optimizer: torch.optim.Optimizer, *, keep: bool) -> int:
    """Load the newest checkpoint on every rank and return its step, or 0 when there is none.

    Rank 0 alone looks and sends what it found, so that all ranks go on from the same step. A first start without a
    run id removes what an older run left in ``folder``, unless ``keep``.
    """
    found: list[dict[str, Any] | None] = [None]
    if run.rank == 0:
        if run.is_fresh and not keep:
            checkpoint.clear(folder)
        found = [checkpoint.load_newest(folder)]
    dist.broadcast_object_list(found, src=0)
    state = found[0]
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


class Log:
    """What rank 0 says: lines on its output, and JSON lines in the metrics file. Other ranks say nothing."""

    def __init__(self, metrics: Path | None, run: Run, every: int) -> None:
        self._metrics = metrics
        self._run = run
        self._every = every

    def start(self, step: int) -> None:
        """The run begins, or goes on from the checkpoint of ``step``."""
        what = f"resumed at step {step}" if step else "starting"
        self._print(f"{what}, world size {self._run.world_size}, restart {self._run.restart_count}")
        self._append({"event": "start", "step": step})

    def step(self, step: int, loss: float, *, last: bool) -> None:
        """``step`` steps are complete; ``loss`` is that of the newest one, in nats for each byte."""
        if step % self._every == 0 or last:
            self._print(f"step {step}: loss {loss:.3f}")
        self._append({"event": "step", "step": step, "loss": loss})

    def _print(self, line: str) -> None:
        if self._run.rank == 0:
            print(line, flush=True)

    def _append(self, record: dict[str, Any]) -> None:
        if self._run.rank != 0 or self._metrics is None:
            return
        record |= {"time": time.time(), "world_size": self._run.world_size, "restart_count": self._run.restart_count}
        # One write of one line to a file opened for appending: a kill leaves whole lines.
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
