"""Checkpoints as tables for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tlaunch.checkpoint.comparing import Difference
from tlaunch.checkpoint.errors import Damaged
from tlaunch.checkpoint.layout import Address, is_reserved
from tlaunch.checkpoint.manifest import Manifest, Tensor
from tlaunch.checkpoint.values import Json, from_json

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows of text in columns. ``heads`` may be empty; a column whose head is in ``numbers`` is flush right."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    numbers: frozenset[str] = frozenset()


def size(count: float) -> str:
    """Return a number of bytes as people say it."""
    units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    at = 0
    while count >= 999.5 and at + 1 < len(units):  # which would be shown as 1e+03
        count, at = count / 1000, at + 1
    return f"{count:.3g} {units[at]}" if at else f"{count:.0f} B"


def table(found: Sequence[tuple[Address, Manifest | str]]) -> Grid:
    """Show checkpoints, the oldest first: their manifest, or why there is none that can be read."""
    rows = []
    for address, manifest in found:
        if isinstance(manifest, str):
            facts = ("", "", "", "", manifest)
        else:
            count = str(sum(not is_reserved(name) for name in manifest.tensors))
            facts = (manifest.created, str(manifest.world), size(manifest.size), count, "")
        rows.append((str(address.step), str(address.generation), *facts))
    heads = ("step", "generation", "saved", "ranks", "size", "tensors", "")
    return Grid(heads, rows, numbers=frozenset(heads) - {"saved", ""})


def facts_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what is known of a checkpoint of ours as a whole."""
    yield "step", str(manifest.step)
    yield "generation", str(manifest.generation)
    yield "saved", manifest.created
    yield "ranks", str(manifest.world)
    if manifest.mesh:
        yield "mesh", ",".join(f"{name}={size}" for name, size in manifest.mesh.items())
    yield "software", ", ".join(f"{name} {version}" for name, version in manifest.software.items())
    yield "files", f"{len(manifest.files)}, {size(manifest.size)}"


def details(
    facts: Iterable[tuple[str, str]],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Json],
    lost: Mapping[str, str] | None = None,
) -> list[Grid]:
    """Show all of one checkpoint but the numbers in its tensors, and what each rank has for itself."""
    ours = {name: tensors[name] for name in sorted(tensors, key=_natural) if not is_reserved(name)}
    kept = {name: _short(values[name], name) for name in values if not is_reserved(name)}
    hidden = len(tensors) + len(values) - len(ours) - len(kept)
    kept |= {name: why.removeprefix(f"{name}: ") for name, why in (lost or {}).items()}
    summary = [*facts, ("tensors", f"{len(ours)}, {size(sum(tensor.size for tensor in ours.values()))}")]
    if hidden:
        summary.append(("not shown", f"{hidden} of single ranks, such as random number states, or of torch's planner"))
    rows = [
        (name, tensor.dtype, "x".join(map(str, tensor.shape)) or "scalar", str(len(tensor.slices)), size(tensor.size))
        for name, tensor in ours.items()
    ]
    heads = ("name", "type", "shape", "slices", "size")
    return [
        Grid((), summary),
        Grid(heads, rows, "tensors", frozenset({"slices", "size"})),
        Grid((), [(name, kept[name]) for name in sorted(kept, key=_natural)], "values"),
    ]


def differences(found: Sequence[Difference]) -> Grid:
    """Show what differs between two checkpoints."""
    rows = [(each.name, each.what, _cut(each.first), _cut(each.second)) for each in found]
    return Grid(("name", "differs in", "first", "second"), rows)


def _natural(name: str) -> list[str | int]:
    """Return by what names are sorted: ``h.2`` before ``h.10``."""
    return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"(\d+)", name))]


def _short(value: Json, name: str) -> str:
    try:
        return _cut(repr(from_json(value, name)))
    except Damaged:
        return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
