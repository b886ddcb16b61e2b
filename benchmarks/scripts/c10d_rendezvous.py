"""torchrun's own rendezvous for many nodes in one process: its dynamic rendezvous on the C10d store.

    python c10d_rendezvous.py --nodes N [--deadline 60]

Each node is a thread with a connection of its own to one ``TCPStore``, as the agents of torchrun have, and joins with
``next_rendezvous``. ``ready`` comes on standard output when all have been made; a line on standard input lets them go;
then one JSON object: ``{"nodes": N, "seconds": until the last one has its rank, or null}``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is exported, though not in its list
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, create_handler

STACK = 1 << 20
"""Bytes for each thread."""


def handler(store: TCPStore, nodes: int) -> DynamicRendezvousHandler:
    """Return what ``torchrun --nnodes N --rdzv-backend c10d`` makes on each node."""
    params = RendezvousParameters(
        "c10d", "127.0.0.1", "job", nodes, nodes, local_addr="127.0.0.1", join_timeout=600, keep_alive_interval=5
    )
    return create_handler(store, C10dRendezvousBackend(store, "job"), params)


def main() -> None:
    """Let all nodes join, and say how long it took."""
    parser = argparse.ArgumentParser(description="Measure torchrun's dynamic rendezvous.")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--deadline", type=float, default=60.0)
    given = parser.parse_args()
    threading.stack_size(STACK)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    limit = timedelta(seconds=600)
    stores = [
        TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=limit)
        for _ in range(given.nodes)
    ]
    handlers = [handler(store, given.nodes) for store in stores]
    done: list[float] = []
    all_done = threading.Event()

    def join(node: DynamicRendezvousHandler) -> None:
        node.next_rendezvous()
        done.append(time.monotonic())
        if len(done) == given.nodes:
            all_done.set()

    threads = [threading.Thread(target=join, args=(node,), daemon=True) for node in handlers]
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    for thread in threads:
        thread.start()
    finished = all_done.wait(given.deadline)
    print(json.dumps({"nodes": given.nodes, "seconds": max(done) - start if finished else None}), flush=True)
    os._exit(0)  # its threads keep the rendezvous alive, and would do so for ever


if __name__ == "__main__":
    main()
