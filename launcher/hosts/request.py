"""What is to be started, after flags, environment and configuration have been read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store.endpoints import Endpoints
from tlaunch.topology.model import Machine


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One run of one script.

    ``machine``: the nodes to start agents for, with their coordinates; with ``discover`` each agent puts in their place
    what it finds out itself. ``argv``: the script (or module, with ``module``) and its arguments. ``start``: fork
    workers from a warm zygote, or start fresh interpreters. ``policy``: ``module:Class`` or ``None``. ``endpoints``:
    the etcd to use, ``None`` for an embedded one. ``log_dir`` exists.
    """

    spec: JobSpec
    machine: Machine
    discover: bool
    argv: tuple[str, ...]
    module: bool
    start: Literal["fork", "fresh"]
    policy: str | None
    endpoints: Endpoints | None
    log_dir: Path
