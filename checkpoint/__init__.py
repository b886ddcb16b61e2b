"""Asynchronous sharded checkpoints: safetensors shards, one JSON manifest, no pickle, no collective while saving.

    from tlaunch.checkpoint import Checkpointer

Usable alone, under any launcher. From the ground up; none of these knows of what follows:

- ``region``, ``dtypes``, ``values``, ``tree``: boxes in tensors, element types, what is not a tensor, strict JSON
- ``manifest``, ``layout``: what a checkpoint says of itself, and where it lies
- ``arguments``: what users pass beside states and paths
- ``files``, ``objects``, ``places``: the few operations on a file system that everything else is made of
- ``checksum``, ``direct``: CRC-32, and writing past the page cache
- ``shard``, ``absence``, ``generations``, ``commit``, ``takeover``: writing and committing checkpoints
- ``catalog``, ``reading``: finding and reading them
- ``source``, ``pickled``, ``distcp``, ``huggingface``, ``opening``: reading those of other formats, and ours, alike
- ``arithmetic``, ``naming``, ``flows``, ``fresh``: tensors on their way to another format or place
- ``exporting``, ``importing``, ``comparing``: what ``tlaunch checkpoint`` does
- ``arena``, ``plan``, ``messages``, ``commits``, ``saver``: the process of each node that writes; it loads no torch
- ``home``: where a saver listens, how it is started and replaced; agents of ``tlaunch`` do that too
- ``flat``, ``slices``, ``outline``, ``ranks``, ``agreement``, ``preparing``: what the trainer saves, and who writes it
- ``gpu``, ``capture``, ``link``, ``saving``: how it gets to the saver
- ``resharding``, ``restoring``, ``random_state``, ``checkpointer``: what users call

The format is specified in ``docs/checkpoint-format.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlaunch.checkpoint.catalog import Keep
    from tlaunch.checkpoint.checkpointer import Checkpointer
    from tlaunch.checkpoint.errors import CheckpointError, Damaged, Superseded, Unusable
    from tlaunch.checkpoint.restoring import load

__all__ = ["CheckpointError", "Checkpointer", "Damaged", "Keep", "Superseded", "Unusable", "load"]

_HOMES = {
    "CheckpointError": "errors",
    "Checkpointer": "checkpointer",
    "Damaged": "errors",
    "Keep": "catalog",
    "Superseded": "errors",
    "Unusable": "errors",
    "load": "restoring",
}

# The saver imports this package too, and is to stay without torch. Type checkers see the imports above.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Fetch a public name when it is first used."""
        import importlib

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
