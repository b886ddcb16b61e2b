"""Fault-tolerant, topology-aware launcher for PyTorch training.

``import tlaunch`` loads nothing: each name below is fetched from its home when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlaunch.launcher.core.cluster import Cluster
    from tlaunch.launcher.core.decisions import Decision, Grow, MoveGroup, Restart, Shrink, Stop, Swap, Wait
    from tlaunch.launcher.core.policy import Failure, Policy, Room

    __version__: str

__all__ = [
    "Cluster",
    "Decision",
    "Failure",
    "Grow",
    "MoveGroup",
    "Policy",
    "Restart",
    "Room",
    "Shrink",
    "Stop",
    "Swap",
    "Wait",
    "__version__",
]

_HOMES = {
    "Cluster": "tlaunch.launcher.core.cluster",
    "Decision": "tlaunch.launcher.core.decisions",
    "Failure": "tlaunch.launcher.core.policy",
    "Grow": "tlaunch.launcher.core.decisions",
    "MoveGroup": "tlaunch.launcher.core.decisions",
    "Policy": "tlaunch.launcher.core.policy",
    "Restart": "tlaunch.launcher.core.decisions",
    "Room": "tlaunch.launcher.core.policy",
    "Shrink": "tlaunch.launcher.core.decisions",
    "Stop": "tlaunch.launcher.core.decisions",
    "Swap": "tlaunch.launcher.core.decisions",
    "Wait": "tlaunch.launcher.core.decisions",
}

# Type checkers see the imports above instead; with a __getattr__ they would accept every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Fetch a public name when it is first used."""
        import importlib

        if name == "__version__":
            from importlib.metadata import version

            value: object = version("tlaunch")
        elif name in _HOMES:
            value = getattr(importlib.import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
