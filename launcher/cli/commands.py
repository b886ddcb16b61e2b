"""What the commands do. Each returns its exit code; what goes wrong is raised as one line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tlaunch.errors import InputError
from tlaunch.launcher.cli import operate
from tlaunch.launcher.cli.operate import Target
from tlaunch.launcher.cli.options import (
    DrainOptions,
    KillOptions,
    StatusOptions,
    StopOptions,
    StoreOptions,
)

T = TypeVar("T")


def status(given: StatusOptions) -> int:
    """``tlaunch status``."""
    job = asyncio.run(_on(given, given.job, Target.view))
    if given.json:
        import json

        from tlaunch.launcher.observe.status import document

        _say(json.dumps(document(job), indent=2, ensure_ascii=False))
    else:
        from tlaunch.launcher.observe.status import show

        show(job)
    return 0


def stop(given: StopOptions) -> int:
    """``tlaunch stop``."""
    _say(asyncio.run(_on(given, given.job, operate.stop)))
    return 0


def drain(given: DrainOptions) -> int:
    """``tlaunch drain``."""
    name = given.target
    if name is None:
        raise InputError("drain: expected a node, or a GPU such as node-03/gpu-2")
    _say(asyncio.run(_on(given, given.job_id, lambda job: operate.drain(job, name))))
    return 0


def kill(given: KillOptions) -> int:
    """``tlaunch kill``."""
    orders: list[Callable[[Target], Awaitable[str]]] = []
    if (rank := given.rank) is not None:
        orders.append(lambda job: operate.kill_rank(job, rank))
    if (gpu := given.gpu) is not None:
        orders.append(lambda job: operate.kill_gpu(job, gpu))
    if (node := given.node) is not None:
        orders.append(lambda job: operate.kill_node(job, node))
    if len(orders) != 1:
        raise InputError("kill: expected one of --rank R, --gpu NODE/gpu-I and --node NODE")
    _say(asyncio.run(_on(given, given.job_id, orders[0])))
    return 0


async def _on(given: StoreOptions, job_id: str | None, act: Callable[[Target], Awaitable[T]]) -> T:
    async with operate.target(given, job_id) as job:
        return await act(job)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
