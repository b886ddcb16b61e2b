"""Hosts the ``TCPStore`` of one generation, for ``env://`` to rendezvous at.

    python -m tlaunch.launcher.elastic.tcpstore

The agent has bound the listening socket, so there is no race for a port and every generation has a fresh one; it hands
it over in the variable ``TLAUNCH_STORE_FD``. Workers connect to it with ``TORCHELASTIC_USE_AGENT_STORE=True``. The
store lives until it is killed, so not in a worker: a rank's end takes no other rank's store with it.
"""

from __future__ import annotations

import os
import signal
import socket
from datetime import timedelta

# The store's own client connects to a listening socket on this machine.
_CONNECT_SECONDS = 60


def _reachable_host(listener: socket.socket) -> str:
    """Return the address at which this machine itself reaches the socket."""
    host: str = listener.getsockname()[0]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def main() -> None:
    """Serve until killed."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with socket.socket(fileno=int(os.environ["TLAUNCH_STORE_FD"])) as listener:
        host, port = _reachable_host(listener), listener.getsockname()[1]
        fd = listener.detach()  # the store closes it
    store = TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=_CONNECT_SECONDS),
        master_listen_fd=fd,
        use_libuv=True,
    )
    assert store.port == port
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
