"""Checkpoints as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from tlaunch.checkpoint.comparing import Difference
from tlaunch.checkpoint.layout import Address, is_reserved
from tlaunch.checkpoint.manifest import Manifest
from tlaunch.checkpoint.values import Json

_SHOWN = 60


def size(count: float) -> str:
    """Return a number of bytes as people say it."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def table(found: Sequence[tuple[Address, Manifest | str]]) -> RenderableType:
    """Show checkpoints, the oldest first: their manifest, or why there is none that can be read."""
    shown = Table(box=None, pad_edge=False)
    for name, justify in (("step", "right"), ("generation", "right"), ("saved", "left"), ("ranks", "right")):
        shown.add_column(name, justify="right" if justify == "right" else "left")
    shown.add_column("size", justify="right")
    shown.add_column("tensors", justify="right")
    shown.add_column("")
    for address, manifest in found:
        if isinstance(manifest, str):
            shown.add_row(str(address.step), str(address.generation), "", "", "", "", manifest)
        else:
            tensors = sum(not is_reserved(name) for name in manifest.tensors)
            facts = (manifest.created, str(manifest.world), size(manifest.size), str(tensors))
            shown.add_row(str(address.step), str(address.generation), *facts, "")
    return shown


def details(manifest: Manifest) -> RenderableType:
    """Show all of one checkpoint but the numbers in its tensors."""
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    for name, value in _facts(manifest):
        facts.add_row(name, value)
    tensors = Table(box=None, pad_edge=False, title="tensors", title_justify="left")
    tensors.add_column("name", overflow="fold")
    tensors.add_column("type")
    tensors.add_column("shape")
    tensors.add_column("slices", justify="right")
    tensors.add_column("size", justify="right")
    for name, tensor in sorted(manifest.tensors.items()):
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        tensors.add_row(name, tensor.dtype, shape, str(len(tensor.slices)), size(tensor.size))
    values = Table(box=None, pad_edge=False, title="values", title_justify="left", show_header=False)
    values.add_column(overflow="fold")
    values.add_column(overflow="fold")
    for name, saved in sorted(manifest.values.items()):
        values.add_row(name, _short(saved))
    return Group(facts, "", tensors, "", values)


def differences(found: Sequence[Difference]) -> RenderableType:
    """Show what differs between two checkpoints."""
    shown = Table(box=None, pad_edge=False)
    for name in ("name", "differs in", "first", "second"):
        shown.add_column(name, overflow="fold")
    for each in found:
        shown.add_row(*(escape(_cut(text)) for text in (each.name, each.what, each.first, each.second)))
    return shown


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "step", str(manifest.step)
    yield "generation", str(manifest.generation)
    yield "saved", manifest.created
    yield "ranks", str(manifest.world)
    if manifest.mesh:
        yield "mesh", ",".join(f"{name}={size}" for name, size in manifest.mesh.items())
    yield "software", ", ".join(f"{name} {version}" for name, version in manifest.software.items())
    yield "files", f"{len(manifest.files)}, {size(manifest.size)}"


def _short(value: Json) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
