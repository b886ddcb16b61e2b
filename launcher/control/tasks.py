"""Running several things at once, so that none fails unseen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from subprocess import Popen
from typing import Any

from tlaunch.launcher.store.mirror import Mirror, Reader


async def until_first(main: Coroutine[Any, Any, None], *others: Coroutine[Any, Any, None]) -> None:
    """Run all until ``main`` ends or any of them fails; then cancel the rest and raise the first failure."""
    tasks = [asyncio.ensure_future(part) for part in (main, *others)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def changed(mirror: Mirror | Reader, beside: asyncio.Task[None] | None) -> None:
    """Wait for news; should the task beside fail meanwhile, raise what it failed with."""
    if beside is None:
        await mirror.changed(None)
        return
    news = asyncio.ensure_future(mirror.changed(None))
    try:
        await asyncio.wait([news, beside], return_when=asyncio.FIRST_COMPLETED)
        if beside.done():
            beside.result()
        await news
    finally:
        news.cancel()


async def interrupt(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait until it has ended."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])


async def end_of(process: Popen[bytes]) -> int:
    """Wait until a child of ours has ended, and return its exit code or minus its signal."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(process.pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return process.wait()
