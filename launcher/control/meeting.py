"""Where the ranks of one generation meet: a store process beside rank 0, on a port that is fresh for each generation.

The agent of rank 0's node binds the port itself and publishes it before the store process is up: connections queue in
the socket's backlog, so nobody waits for it and no port can be taken by somebody else in between.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from tlaunch.errors import TlaunchError
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.program import rendezvous_log
from tlaunch.launcher.control.records import Rendezvous
from tlaunch.launcher.control.spawn import Process, Zygote
from tlaunch.launcher.core.codec import decode
from tlaunch.launcher.process.messages import Work
from tlaunch.launcher.store.mirror import Mirror

log = logging.getLogger(__name__)

BACKLOG = 4096
STORE_MODULE = "tlaunch.launcher.elastic.tcpstore"
LISTEN_FD = "TLAUNCH_STORE_FD"


class NoMeeting(TlaunchError):
    """Rank 0's node has not opened the rendezvous in time."""


class Venue:
    """The store processes of this node, one at a time.

    Args:
        zygote: gives the zygote to fork them from.
        host: where they listen.
        env: what they find in ``os.environ``.
        log_dir: the job's; they print to ``generation-N/rendezvous.log`` there.

    """

    def __init__(
        self, zygote: Callable[[], Awaitable[Zygote]], host: str, env: Mapping[str, str], log_dir: Path
    ) -> None:
        self._zygote = zygote
        self._host = host
        self._env = env
        self._log_dir = log_dir
        self._process: Process | None = None

    async def open(self, generation: int, over: Callable[[], object]) -> Rendezvous:
        """Bind a free port and start the store process on it. ``over`` is called should it end by itself."""
        log_file = rendezvous_log(self._log_dir, generation)
        zygote = await self._zygote()
        listener = socket.create_server((self._host, 0), backlog=BACKLOG)
        try:
            place = Rendezvous(self._host, listener.getsockname()[1])
            process = self._process = await zygote.standby()
            work = Work(
                argv=(STORE_MODULE, place.host, str(place.port)),
                module=True,
                env=self._env,
                cwd="/",
                stdout=log_file,
                stderr=log_file,
                fds={LISTEN_FD: listener.fileno()},
            )
            process.start(work)
        finally:
            listener.close()
        process.ended.add_done_callback(lambda _: self._ended(process, place, over))
        return place

    @property
    def over(self) -> bool:
        """Whether the store process has ended by itself: then nobody can meet any more."""
        return self._process is not None and self._process.ended.done()

    def close(self) -> None:
        """End the store process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill(signal.SIGKILL)

    def _ended(self, process: Process, place: Rendezvous, over: Callable[[], object]) -> None:
        if self._process is process:
            log.error("the rendezvous store at %s:%d has ended; its log is rendezvous.log", place.host, place.port)
            over()


async def find_meeting(head: Mirror, keys: Keys, generation: int, timeout: float) -> Rendezvous:
    """Wait until the rendezvous of a generation has been published, for ``timeout`` seconds at most.

    ``head`` mirrors all of them: a watch that stands already brings news at once, a new one only within 0.1 s.
    """
    key = keys.rendezvous(generation)
    meetings = head.reader(key)
    deadline = time.monotonic() + timeout
    while key not in meetings.items:
        if not await meetings.changed(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
            raise NoMeeting(
                f"generation {generation}: the node of rank 0 has not opened the rendezvous within {timeout:g} s"
            )
    return decode(Rendezvous, meetings.items[key].value, key)
