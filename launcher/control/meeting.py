"""Where the ranks of one generation meet: a store process beside rank 0, on a port that is fresh for each generation.

The agent of rank 0's node binds the port itself and publishes it before the store process is up: connections queue in
the socket's backlog, so nobody waits for it and no port can be taken by somebody else in between.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tlaunch.errors import TlaunchError
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Rendezvous
from tlaunch.launcher.control.spawn import Process, Zygote
from tlaunch.launcher.core.codec import decode
from tlaunch.launcher.process.messages import Work
from tlaunch.launcher.store.mirror import Mirror

BACKLOG = 4096
STORE_MODULE = "tlaunch.launcher.elastic.tcpstore"
LISTEN_FD = "TLAUNCH_STORE_FD"


class NoMeeting(TlaunchError):
    """Rank 0's node has not opened the rendezvous in time."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """An open rendezvous and the process that serves it."""

    place: Rendezvous
    process: Process


async def open_meeting(zygote: Zygote, host: str, env: Mapping[str, str], log: str) -> Meeting:
    """Bind a free port of ``host`` and start the store process on it, which prints to the file ``log``."""
    listener = socket.create_server((host, 0), backlog=BACKLOG)
    try:
        place = Rendezvous(host, listener.getsockname()[1])
        process = await zygote.standby()
        work = Work(
            argv=(STORE_MODULE, host, str(place.port)),
            module=True,
            env=env,
            cwd="/",
            stdout=log,
            stderr=log,
            fds={LISTEN_FD: listener.fileno()},
        )
        process.start(work)
    finally:
        listener.close()
    return Meeting(place, process)


async def find_meeting(meetings: Mirror, keys: Keys, generation: int, timeout: float) -> Rendezvous:
    """Wait until the rendezvous of a generation has been published, for ``timeout`` seconds at most.

    ``meetings`` mirrors all of them: a watch that stands already brings news at once, a new one only within 0.1 s.
    """
    key = keys.rendezvous(generation)
    deadline = time.monotonic() + timeout
    while key not in meetings.items:
        if not await meetings.changed(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
            raise NoMeeting(
                f"generation {generation}: the node of rank 0 has not opened the rendezvous within {timeout:g} s"
            )
    return decode(Rendezvous, meetings.items[key].value, key)
