"""The store: where the truth about a job lives.

``protocol`` says what a store does; ``EtcdStore`` (``connect``) does it on etcd, ``MemoryStore`` in memory. ``Mirror``
keeps a current copy of a prefix of either. ``EmbeddedEtcd`` runs an etcd for jobs that have no cluster around them.

Names resolve lazily, because ``connect`` and ``EmbeddedEtcd`` import grpc, which takes a tenth of a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlaunch.launcher.store.embedded import EmbeddedEtcd, find_etcd
    from tlaunch.launcher.store.endpoints import Endpoints
    from tlaunch.launcher.store.etcd import EtcdStore, connect, connect_and_get
    from tlaunch.launcher.store.memory import MemoryStore
    from tlaunch.launcher.store.mirror import Mirror
    from tlaunch.launcher.store.protocol import Lease, Store

__all__ = [
    "EmbeddedEtcd",
    "Endpoints",
    "EtcdStore",
    "Lease",
    "MemoryStore",
    "Mirror",
    "Store",
    "connect",
    "connect_and_get",
    "find_etcd",
]

_HOME = {
    "EmbeddedEtcd": "embedded",
    "Endpoints": "endpoints",
    "EtcdStore": "etcd",
    "Lease": "protocol",
    "MemoryStore": "memory",
    "Mirror": "mirror",
    "Store": "protocol",
    "connect": "etcd",
    "connect_and_get": "etcd",
    "find_etcd": "embedded",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
