"""What the commands do. Each returns its exit code; what goes wrong is raised as one line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from tlaunch.errors import InputError
from tlaunch.launcher.cli import operate
from tlaunch.launcher.cli.operate import Target
from tlaunch.launcher.cli.options import (
    DrainOptions,
    KillOptions,
    PlanOptions,
    ShowOptions,
    StatusOptions,
    StopOptions,
    StoreOptions,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

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


def topology_show(given: ShowOptions) -> int:
    """``tlaunch topology show``."""
    from tlaunch.topology.files import load
    from tlaunch.topology.picture import show

    _draw(show(load(_file(given.file)).machine()))
    return 0


def topology_plan(given: PlanOptions) -> int:
    """``tlaunch topology plan``."""
    from tlaunch.launcher.cli.request import mesh_of
    from tlaunch.topology.files import load
    from tlaunch.topology.picture import plan
    from tlaunch.topology.placement import place

    machine = load(_file(given.file)).machine(given.nodes, given.gpus_per_node)
    spares = given.spares or 0
    mesh = mesh_of(given.mesh, machine, spares)
    _draw(plan(machine, place(machine, mesh, spares, strict=given.strict), mesh))
    return 0


async def _on(given: StoreOptions, job_id: str | None, act: Callable[[Target], Awaitable[T]]) -> T:
    async with operate.target(given, job_id) as job:
        return await act(job)


def _file(name: str | None) -> str:
    if name is None:
        raise InputError("topology: expected a YAML file, or a known name such as nvl72")
    return name


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _draw(picture: RenderableType) -> None:
    from rich.console import Console

    Console(highlight=False).print(picture)
