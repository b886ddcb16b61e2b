"""Reads the one pickle that there is no way around: the ``.metadata`` of ``torch.distributed.checkpoint``.

A pickle names the functions that are called when it is loaded. Of those only the handful that this file needs are let
through, and none of them is the real one: each name stands for a plain object that keeps what it was made from. So
nothing runs that a file names, and torch is not loaded.
"""

from __future__ import annotations

import io
import pickle
import reprlib
from collections.abc import Sequence
from typing import Any, TypeAlias

from tlaunch.checkpoint import dtypes
from tlaunch.checkpoint.errors import Unusable

Anything: TypeAlias = Any


class Stand:
    """Stands in for an object of torch: ``state`` is what its attributes were set to."""

    def __init__(self, *made_of: Anything) -> None:
        self.made_of = made_of
        self.state: Anything = {}

    def __setstate__(self, state: Anything) -> None:
        self.state = state


class StoredTensor(Stand):
    """A ``TensorStorageMetadata``."""


class StoredBytes(Stand):
    """A ``BytesStorageMetadata``."""


_METADATA = "torch.distributed.checkpoint.metadata"
_OLD = "torch.distributed._shard.sharded_tensor.metadata"  # torch before 2.3

_KNOWN: dict[tuple[str, str], type] = {
    (_METADATA, "TensorStorageMetadata"): StoredTensor,
    (_METADATA, "BytesStorageMetadata"): StoredBytes,
    **{
        (_METADATA, name): Stand
        for name in (
            "Metadata", "ChunkStorageMetadata", "TensorProperties", "MetadataIndex", "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (_OLD, "TensorProperties"): Stand,
    (_OLD, "MEM_FORMAT_ENCODING"): Stand,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): Stand,
    ("torch.serialization", "_get_layout"): Stand,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
    ("pathlib", "PosixPath"): Stand,
    ("pathlib._local", "PosixPath"): Stand,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Lets through what is known, and says of the first thing that is not what it was."""

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(io.BytesIO(data))
        self._where = where

    def find_class(self, module: str, name: str) -> Anything:
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module == "torch" and dtypes.is_torch_name(name):
            return name
        raise Unusable(
            f"{self._where}: its pickle asks for {module}.{name}, which is not loaded: "
            "that is no part of what torch.distributed.checkpoint writes"
        )


def load(data: bytes, where: str) -> Anything:
    """Return what is pickled, made of plain objects. ``where`` names the file in errors.

    Raises:
        Unusable: it is no pickle, or asks for anything else than the metadata of torch.distributed.checkpoint.
    """
    try:
        return _Unpickler(data, where).load()
    except Unusable:
        raise
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, ImportError,
        RecursionError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"{where}: expected the metadata of torch.distributed.checkpoint: {reason}") from None


def attribute(stand: Anything, name: str, kind: type, where: str) -> Anything:
    """Return what an attribute was set to.

    Raises:
        Unusable: it was not, or to something of another type.
    """
    state = stand.state if isinstance(stand, Stand) else None
    value = state.get(name) if isinstance(state, dict) else None
    if not isinstance(value, kind):
        raise Unusable(f"{where}: expected a {kind.__name__} as {name!r}, found a {type(value).__name__}")
    return value


def sizes(value: Anything, where: str) -> tuple[int, ...]:
    """Return a ``torch.Size``.

    Raises:
        Unusable: it is none.
    """
    if not isinstance(value, Sequence) or any(type(size) is not int or size < 0 for size in value):
        # What a pickle holds twice is there once: printed in full, a few hundred bytes of it can fill the memory.
        raise Unusable(f"{where}: expected sizes, found {reprlib.repr(value)}")
    return tuple(value)
