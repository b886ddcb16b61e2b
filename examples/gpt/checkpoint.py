"""Checkpoints that a kill -9 cannot tear: each one is written under a temporary name, synced, and then renamed.

Only rank 0 uses this module. A checkpoint of step ``s`` is the file ``step-<s>.pt``; the newest two are kept.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

_KEEP = 2
# What torch.load raises for a file that is empty, cut off or not a checkpoint.
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` as the checkpoint of ``step``, durably, and remove all but the newest two. Raise ``OSError``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"step": step, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(folder)
    for old in _newest_first(folder)[_KEEP:]:
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, with its ``step``, or ``None`` when there is none."""
    for path in _newest_first(folder):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            reason = str(error).partition("\n")[0]
            print(f"checkpoint {path} cannot be read, trying the one before it: {reason}", flush=True)
        else:
            return state
    return None


def clear(folder: Path) -> None:
    """Remove every checkpoint in ``folder``, and what a killed writer left behind."""
    for path in [*folder.glob("step-*.pt"), *folder.glob("step-*.tmp")]:
        path.unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
