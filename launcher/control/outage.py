"""When an outage of the store has lasted too long: for a node on which nothing runs there is nothing to wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

from tlaunch.launcher.store.mirror import Mirror
from tlaunch.launcher.store.protocol import StoreUnavailable

LOOK_AGAIN = 1.0
"""Seconds, while ranks run on in an outage that has lasted too long for anybody else."""


async def until_hopeless(mirror: Mirror, busy: Callable[[], bool], limit: float) -> NoReturn:
    """Raise ``StoreUnavailable`` once contact has been lost for ``limit`` seconds and ranks do not run (any more).

    While they do they are left alone: the store may come back, and until then they get on with their work.
    """
    while True:
        left = mirror.contact + limit - time.monotonic()
        if left <= 0 and not busy():
            raise StoreUnavailable(
                f"etcd has been out of reach for {limit:g} s, and no rank runs here any more; expected it to come back"
            )
        await asyncio.sleep(left if left > 0 else LOOK_AGAIN)
