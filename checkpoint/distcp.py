"""Reading a directory that ``torch.distributed.checkpoint`` has written: ``.metadata`` and ``__0_0.distcp``, ....

Each chunk of a tensor, and each value, was written by ``torch.save``, and is read with ``weights_only=True``: nothing
runs that a file names. There are no checksums in this format, so that a changed bit goes unnoticed.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from tlaunch.checkpoint import dtypes, pickled
from tlaunch.checkpoint.errors import Damaged, Unusable
from tlaunch.checkpoint.files import Files, read_foreign, why
from tlaunch.checkpoint.layout import DCP_PATHS, METADATA, is_plain
from tlaunch.checkpoint.manifest import Slice, Tensor
from tlaunch.checkpoint.memory import memory_of, plain
from tlaunch.checkpoint.pickled import Stand, StoredBytes, StoredTensor, attribute, sizes
from tlaunch.checkpoint.region import Region, missing_part
from tlaunch.checkpoint.source import Source
from tlaunch.checkpoint.values import Json, to_json

_MAX_BYTES = 1 << 30
"""Of the metadata."""

_KEPT = 1 << 30
"""Bytes of chunks that are remembered: what is cut across its rows is streamed through all of its chunks at once."""

Anything: TypeAlias = Any

Key: TypeAlias = tuple[str, tuple[int, ...] | None]
"""The name of a tensor and where a chunk of it begins; of a value only the name."""


@dataclass(frozen=True, slots=True)
class Item:
    """What one ``torch.save`` has written: ``size`` bytes of a file from ``begin`` on."""

    name: str
    file: str
    begin: int
    size: int


def open_dcp(files: Files) -> Source:
    """Return what a directory holds. Values are read at once, tensors when they are wanted.

    Raises:
        Unusable: the metadata is not what torch writes.
        Damaged: a file is missing or too short.
    """
    where = f"{files.root}/{METADATA}"
    metadata = pickled.load(read_foreign(files, METADATA, _MAX_BYTES, "reading the metadata"), where)
    items = dict(_items(attribute(metadata, "storage_data", dict, where), where))
    _check(files, items.values(), where)
    tensors: dict[str, Tensor] = {}
    chunks: list[tuple[Item, Tensor, Region]] = []
    values: dict[str, Json] = {}
    lost: dict[str, str] = {}
    for name, stored in attribute(metadata, "state_dict_metadata", dict, where).items():
        if not isinstance(name, str):
            raise Unusable(f"{where}: expected text as a name, found a {type(name).__name__}")
        if isinstance(stored, StoredBytes):
            try:
                values[name] = to_json(_loaded(files, _found(items, name, None, where)), name)
            except Unusable as error:
                lost[name] = str(error)
        elif isinstance(stored, StoredTensor):
            tensors[name] = _tensor(name, stored, len(chunks), where)
            for at in tensors[name].slices:
                item = _found(items, name, at.region.offset, where)
                chunks.append((item, tensors[name], at.region))
        else:
            raise Unusable(f"{where}: {name}: expected a tensor or a value, found a {type(stored).__name__}")
    paths = metadata.state.get("planner_data")
    if isinstance(paths, dict) and paths:
        with contextlib.suppress(Unusable):  # that of a planner other than torch's own
            values[DCP_PATHS] = to_json(paths, DCP_PATHS)
    reader = _ChunkReader(files, chunks)
    return Source(files.root, tensors, lambda: reader, values, lost)


def _items(stored: Mapping[Anything, Anything], where: str) -> Iterator[tuple[Key, Item]]:
    for index, info in stored.items():
        name = attribute(index, "fqn", str, where)
        offset = index.state.get("offset")
        file = attribute(info, "relative_path", str, where)
        if info.state.get("transform_descriptors"):
            raise Unusable(f"{where}: {name} is stored as {info.state['transform_descriptors']}; expected it as it is")
        if not is_plain(file):
            raise Unusable(f"{where}: {name}: expected the plain name of a file, found {file!r}")
        place = sizes((info.state.get("offset"), info.state.get("length")), f"{where}: {name}")
        yield (name, None if offset is None else sizes(offset, where)), Item(name, file, *place)


def _check(files: Files, items: Anything, where: str) -> None:
    """Look whether all files are there, and long enough."""
    ends: dict[str, int] = {}
    for item in items:
        ends[item.file] = max(ends.get(item.file, 0), item.begin + item.size)
    for file, end in ends.items():
        try:
            size = files.size(file)
        except FileNotFoundError:
            raise Damaged(f"{files.root}/{file}: this file is missing; {where} names it") from None
        except OSError as error:
            raise why(error, "looking at a file", f"{files.root}/{file}") from error
        if size < end:
            raise Damaged(f"{files.root}/{file}: this file ends after {size} bytes, expected at least {end}")


def _tensor(name: str, stored: StoredTensor, first: int, where: str) -> Tensor:
    """Return what is known of a tensor. Its chunks count as files, from ``first`` on."""
    where = f"{where}: {name}"
    properties = attribute(stored, "properties", Stand, where).state
    kind = properties[0] if isinstance(properties, tuple) and properties else None
    if not isinstance(kind, str):
        raise Unusable(f"{where}: expected an element type")
    dtype, shape = dtypes.name_of(kind, where), sizes(stored.state.get("size"), where)
    slices = []
    for number, chunk in enumerate(attribute(stored, "chunks", list, where)):
        begins, extents = (attribute(chunk, key, tuple, where) for key in ("offsets", "sizes"))
        region = Region(sizes(begins, where), sizes(extents, where))
        if not region.within(shape):
            raise Unusable(f"{where}: a chunk at {list(region.offset)} of {list(region.shape)} is not in {list(shape)}")
        slices.append(Slice(first + number, 0, region))
    lack = missing_part(shape, (at.region for at in slices))
    if lack is not None:
        raise Damaged(f"{where}: {lack}")
    return Tensor(dtype, shape, tuple(slices))


def _found(items: Mapping[Key, Item], name: str, offset: tuple[int, ...] | None, where: str) -> Item:
    item = items.get((name, offset))
    if item is None and offset is not None and not any(offset):
        item = items.get((name, None))
    if item is None:
        raise Damaged(f"{where}: it does not say where {name} lies")
    return item


def _loaded(files: Files, item: Item) -> Anything:
    """Read what one ``torch.save`` has written."""
    where = f"{files.root}/{item.file}"
    data = bytearray(item.size)
    try:
        count = files.read_into(item.file, item.begin, memoryview(data))
    except OSError as error:
        raise why(error, f"reading {item.name}", where) from error
    if count < item.size:
        raise Damaged(f"{where}: this file ends after {item.begin + count} bytes, expected {item.begin + item.size}")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        asked = f"it asks for {named[1]}" if named else str(error).partition("\n")[0]
        raise Unusable(f"{item.name}: in {where}: not loaded, as that would run code: {asked}") from None
    except (RuntimeError, EOFError, ValueError, TypeError, LookupError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise Damaged(f"{where}: bytes {item.begin} to {item.begin + item.size}: no {item.name}: {reason}") from None


class _ChunkReader:
    """Reads chunks of tensors, each as if it were a file, and keeps the last few.

    All threads share one: a large chunk is filled in by several, and is to be read once.
    """

    def __init__(self, files: Files, chunks: Sequence[tuple[Item, Tensor, Region]]) -> None:
        self._files = files
        self._chunks = chunks
        self._kept: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def fill(self, file: int, begin: int, out: memoryview) -> None:
        with self._lock:
            found = self._kept.pop(file, None)
            if found is None:
                size = self._size(file)
                while self._kept and self._held + size > _KEPT:
                    oldest, _ = self._kept.popitem(last=False)
                    self._held -= self._size(oldest)
                found = self._read(*self._chunks[file])
                self._held += size
            self._kept[file] = found
        out[:] = memory_of(found)[begin : begin + len(out)]

    def _size(self, file: int) -> int:
        _, tensor, region = self._chunks[file]
        return region.volume * dtypes.BYTES[tensor.dtype]

    def _read(self, item: Item, tensor: Tensor, region: Region) -> torch.Tensor:
        loaded = _loaded(self._files, item)
        wanted = getattr(torch, dtypes.torch_name(tensor.dtype))
        if not isinstance(loaded, torch.Tensor) or loaded.dtype != wanted or tuple(loaded.shape) != region.shape:
            raise Damaged(
                f"{self._files.root}/{item.file}: bytes {item.begin} to {item.begin + item.size}: "
                f"expected {item.name} as {tensor.dtype} {list(region.shape)}"
            )
        return plain(loaded)
