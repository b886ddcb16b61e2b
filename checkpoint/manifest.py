"""What a checkpoint says of itself: which tensors it holds, where each slice of them lies, and checksums of all of it.

A rank writes a manifest of what it has written itself, a *part*. When the parts of all ranks are there, they are merged
to the checkpoint's manifest, and writing that is what commits the checkpoint.

The file is JSON of two lines. The first holds the CRC-32 of every byte after it, so that no bit of the second can
change unseen; see ``docs/checkpoint-format.md``.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from tlaunch.checkpoint.dtypes import BYTES
from tlaunch.checkpoint.errors import CheckpointError, Damaged, Unusable
from tlaunch.checkpoint.layout import is_plain
from tlaunch.checkpoint.region import Region, missing_part
from tlaunch.checkpoint.tree import Node, parse
from tlaunch.checkpoint.values import Json

P = ParamSpec("P")
R = TypeVar("R")

FORMAT = "tlaunch-checkpoint"
VERSION = 1
BLOCK = 1 << 20
"""Bytes of a file that one checksum covers. The last block of a file may be shorter."""
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Slice:
    """A box of a tensor, stored row-major in ``files[file]`` from its byte ``begin`` on."""

    file: int
    begin: int
    region: Region


@dataclass(frozen=True, slots=True)
class Tensor:
    """A global tensor. ``dtype`` is a safetensors name."""

    dtype: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class File:
    """A safetensors file beside the manifest. ``blocks``: CRC-32 of each ``BLOCK`` bytes of it."""

    name: str
    size: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of a checkpoint, or the part of it that ``ranks`` have written.

    ``generation`` is that of the writer. ``mesh`` and ``software`` only tell people about it.
    """

    step: int
    generation: int
    world: int
    ranks: tuple[int, ...]
    created: str
    files: tuple[File, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Json] = field(default_factory=dict)
    mesh: Mapping[str, int] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def is_whole(self) -> bool:
        """Whether it describes what all ranks have written."""
        return _are_all(self.ranks, self.world)


def _are_all(ranks: Sequence[int], world: int) -> bool:
    return len(ranks) == world and tuple(ranks) == tuple(range(world))  # a damaged world may be any number


def _uncollected(do: Callable[P, R]) -> Callable[P, R]:
    """Have no garbage collected while a manifest is made or read.

    Its many small objects would be gone over, again and again, in search of cycles that they have none of. Of 16 parts
    with 10,000 tensors that took more than half of the time.
    """

    @functools.wraps(do)
    def wrapped(*given: P.args, **named: P.kwargs) -> R:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return do(*given, **named)
        finally:
            if enabled:
                gc.enable()

    return wrapped


@_uncollected
def merge(parts: Sequence[Manifest]) -> Manifest:
    """Return the manifest of a whole checkpoint from the parts of all of its ranks.

    Raises:
        CheckpointError: they do not fit together: the ranks disagree, or elements of a tensor are missing.
    """
    parts = sorted(parts, key=lambda part: part.ranks)
    first = parts[0]
    ranks = tuple(rank for part in parts for rank in part.ranks)
    where = f"step {first.step} of generation {first.generation}"
    if not _are_all(ranks, first.world):
        raise CheckpointError(f"{where}: expected one part of each of {first.world} ranks, found those of {ranks}")
    files: list[File] = []
    forms: dict[str, Tensor] = {}
    slices: dict[str, list[Slice]] = {}
    values: dict[str, Json] = {}
    for part in parts:
        if (part.step, part.generation, part.world) != (first.step, first.generation, first.world):
            raise CheckpointError(f"{where}: rank {part.ranks[0]} wrote step {part.step} of {part.generation}")
        for name, tensor in part.tensors.items():
            _refuse_other_form(name, forms.setdefault(name, tensor), tensor, where)
            # In a list that grows: there may be a slice of each of ten thousand ranks.
            slices.setdefault(name, []).extend(Slice(at.file + len(files), at.begin, at.region) for at in tensor.slices)
        files.extend(part.files)
        if twice := values.keys() & part.values.keys():
            raise CheckpointError(f"{where}: {min(twice)} was written by two ranks")
        values.update(part.values)
    tensors = {name: Tensor(form.dtype, form.shape, tuple(slices[name])) for name, form in forms.items()}
    for name, tensor in tensors.items():
        lack = missing_part(tensor.shape, (at.region for at in tensor.slices))
        if lack is not None:
            raise CheckpointError(f"{where}: tensor {name}: {lack}")
    return Manifest(
        first.step, first.generation, first.world, ranks, first.created,
        tuple(files), tensors, values, first.mesh, first.software,
    )  # fmt: skip


def _refuse_other_form(name: str, known: Tensor, more: Tensor, where: str) -> None:
    if (known.dtype, known.shape) != (more.dtype, more.shape):
        raise CheckpointError(
            f"{where}: tensor {name}: one rank has {known.dtype} {list(known.shape)}, "
            f"another {more.dtype} {list(more.shape)}"
        )


# --- as bytes ------------------------------------------------------------------------------------------------------


@_uncollected
def to_bytes(manifest: Manifest) -> bytes:
    """Write it.

    Raises:
        CheckpointError: it would be too large to be read.
    """
    body: Json = {
        "format": FORMAT,
        "version": VERSION,
        "step": manifest.step,
        "generation": manifest.generation,
        "world": manifest.world,
        "ranks": list(manifest.ranks),
        "created": manifest.created,
        "mesh": dict(manifest.mesh),
        "software": dict(manifest.software),
        "block": BLOCK,
        "files": [
            {"name": file.name, "size": file.size, "crc32": "".join(f"{crc:08x}" for crc in file.blocks)}
            for file in manifest.files
        ],
        "tensors": {
            name: {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "slices": [[at.file, at.begin, list(at.region.offset), list(at.region.shape)] for at in tensor.slices],
            }
            for name, tensor in manifest.tensors.items()
        },
        "values": dict(manifest.values),
    }
    rest = b'"body":' + json.dumps(body, separators=(",", ":"), allow_nan=False).encode() + b"}\n"
    data = _head(rest) + rest
    if len(data) > MAX_BYTES:
        slices = sum(len(tensor.slices) for tensor in manifest.tensors.values())
        raise CheckpointError(
            f"step {manifest.step}: its manifest would be {len(data) >> 20} MiB, and at most {MAX_BYTES >> 20} are "
            f"read; it holds {slices} slices of tensors, and {len(manifest.values)} values"
        )
    return data


def _head(rest: bytes) -> bytes:
    return b'{"crc32":"%08x",\n' % zlib.crc32(rest)


@_uncollected
def from_bytes(data: bytes, where: str) -> Manifest:
    """Read it; ``where`` names the file in errors.

    Raises:
        Damaged: it is not what was written.
        Unusable: it is no manifest at all, or one of a newer version.
    """
    if len(data) > MAX_BYTES:
        raise Unusable(f"{where}: larger than {MAX_BYTES >> 20} MiB; expected a manifest")
    head, newline, rest = data.partition(b"\n")
    if not head.startswith(b'{"crc32":') or not newline:
        raise Damaged(f"{where}: expected a manifest, which starts with its checksum")
    if head + newline != _head(rest):
        raise Damaged(f"{where}: its checksum does not fit; it was changed or cut off after it was written")
    body = parse(data, where).at("body")
    found, version = body.at("format").text(), body.at("version").number()
    if found != FORMAT:
        raise Unusable(f"{where}: its format is {found!r}; expected {FORMAT!r}")
    if version > VERSION:
        raise Unusable(f"{where}: format version {version}; this tlaunch reads up to {VERSION}: install a newer one")
    if body.at("block").number() != BLOCK:
        raise Damaged(f"{where}: body.block: expected {BLOCK}")
    files = tuple(_file(node) for node in body.at("files").items())
    world, ranks = body.at("world").number(), body.at("ranks").numbers()
    whole = _are_all(ranks, world)  # a part holds only some slices of a tensor
    return Manifest(
        step=body.at("step").number(),
        generation=body.at("generation").number(),
        world=world,
        ranks=ranks,
        created=body.at("created").text(),
        files=files,
        tensors={name: _tensor(node, files, whole=whole) for name, node in body.at("tensors").entries()},
        values={name: node.value for name, node in body.at("values").entries()},
        mesh={name: node.number() for name, node in body.at("mesh").entries()},
        software={name: node.text() for name, node in body.at("software").entries()},
    )


def _file(node: Node) -> File:
    name, size, crcs = node.at("name").text(), node.at("size").number(), node.at("crc32").text()
    if not is_plain(name):
        raise node.at("name").misfit("the plain name of a file")
    count = -(-size // BLOCK)
    if len(crcs) != 8 * count or not set(crcs) <= set("0123456789abcdef"):
        raise node.at("crc32").misfit(f"{8 * count} hexadecimal digits")
    return File(name, size, tuple(int(crcs[8 * i : 8 * i + 8], 16) for i in range(count)))


def _tensor(node: Node, files: Sequence[File], *, whole: bool) -> Tensor:
    dtype, shape = node.at("dtype").text(), node.at("shape").numbers()
    if dtype not in BYTES:
        raise node.at("dtype").misfit(f"one of {', '.join(BYTES)}")
    slices = tuple(_slices(node.at("slices"), dtype, shape, files))
    lack = missing_part(shape, (at.region for at in slices)) if whole else None
    if lack is not None:
        raise Damaged(f"{node.file}: {node.path.removeprefix('.')}: {lack}")
    return Tensor(dtype, shape, slices)


def _slices(node: Node, dtype: str, shape: tuple[int, ...], files: Sequence[File]) -> Iterator[Slice]:
    for item in node.items():
        file, begin, offset, size = item.four()
        region = Region(offset.numbers(), size.numbers())
        if not region.within(shape):
            raise item.misfit(f"a box in a tensor of {list(shape)}")
        if not file.number() < len(files):
            raise file.misfit(f"a file below {len(files)}")
        at = Slice(file.number(), begin.number(), region)
        if at.begin + region.volume * BYTES[dtype] > files[at.file].size:
            raise begin.misfit(f"bytes inside of {files[at.file].name}")
        yield at
