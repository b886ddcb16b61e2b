"""``tlaunch checkpoint``: look at checkpoints, check them, and remove old ones. Without torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tlaunch.errors import InputError
from tlaunch.launcher.cli.flags import flag, positional, switch, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

    from tlaunch.checkpoint.files import Files
    from tlaunch.checkpoint.layout import Address
    from tlaunch.checkpoint.manifest import Manifest

_PATH = "Where a job keeps its checkpoints: a folder or a URL."


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """``tlaunch checkpoint ls``."""

    json: bool = switch("--json", "Print one JSON object.")
    path: str | None = positional("PATH", _PATH)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowOptions:
    """``tlaunch checkpoint show``."""

    step: int | None = flag("--step", "N", "Which one (default: the newest).", whole(0))
    json: bool = switch("--json", "Print its manifest.")
    path: str | None = positional("PATH", _PATH)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """``tlaunch checkpoint verify``."""

    step: int | None = flag("--step", "N", "Which one (default: all).", whole(0))
    path: str | None = positional("PATH", _PATH)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """``tlaunch checkpoint prune``."""

    last: int | None = flag("--last", "N", "Keep the newest N.", whole(1))
    every: int | None = flag("--every", "K", "Keep all whose step is a multiple of K, too.", whole(1))
    dry_run: bool = switch("--dry-run", "Say what would be removed, and remove nothing.")
    path: str | None = positional("PATH", _PATH)


def ls(given: ListOptions) -> int:
    """``tlaunch checkpoint ls``."""
    from tlaunch.checkpoint.errors import CheckpointError
    from tlaunch.checkpoint.layout import MANIFEST, address_of

    files = _opened(given.path)
    found: list[tuple[Address, Manifest | str]] = []
    for address in sorted(address for name in files.names() if (address := address_of(name)) is not None):
        if MANIFEST not in files.names(address.folder):
            found.append((address, "not committed"))
            continue
        try:
            found.append((address, _manifest(files, address)))
        except CheckpointError as error:
            found.append((address, str(error)))
    if not found:
        raise InputError(f"{files.root}: there is no checkpoint; expected the path that a job saves to")
    if given.json:
        _print_json([_summary(*each) for each in found])
    else:
        from tlaunch.checkpoint.shown import table

        _draw(table(found))
    return 0


def show(given: ShowOptions) -> int:
    """``tlaunch checkpoint show``."""
    files = _opened(given.path)
    (address,) = _chosen(files, given.step)[-1:]
    if given.json:
        sys.stdout.write(files.read(address.manifest, _limit()).decode())
    else:
        from tlaunch.checkpoint.shown import details

        _draw(details(_manifest(files, address)))
    return 0


def verify(given: VerifyOptions) -> int:
    """``tlaunch checkpoint verify``: 1 when one of them is damaged; all are looked at before that."""
    from rich.console import Console
    from rich.progress import Progress

    from tlaunch.checkpoint import reading
    from tlaunch.checkpoint.errors import CheckpointError
    from tlaunch.checkpoint.shown import size

    files = _opened(given.path)
    chosen = _chosen(files, given.step)
    damaged = 0
    console = Console(highlight=False, soft_wrap=True)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for address in chosen:
            task = progress.add_task(f"step {address.step}", total=None)
            try:
                manifest = _manifest(files, address)
                progress.update(task, total=manifest.size)
                advance = partial(_advance, progress, task)
                count = reading.verify(files, address, manifest, advance)
                console.print(f"step {address.step}, generation {address.generation}: {size(count)}, all as written")
            except CheckpointError as error:
                damaged += 1
                console.print(f"step {address.step}, generation {address.generation}: {error}")
            progress.remove_task(task)
    return 1 if damaged else 0


def _advance(progress: Progress, task: TaskID, count: int) -> None:
    progress.update(task, advance=count)


def prune(given: PruneOptions) -> int:
    """``tlaunch checkpoint prune``."""
    from tlaunch.checkpoint import catalog
    from tlaunch.checkpoint.catalog import Keep

    files = _opened(given.path)
    if given.last is None:
        raise InputError("--last: expected how many of the newest checkpoints to keep")
    keep = Keep(given.last, given.every or 0)
    chosen = keep.superfluous(_chosen(files, None)) if given.dry_run else catalog.prune(files, keep)
    for address in chosen:
        print(f"{'would remove' if given.dry_run else 'removed'} step {address.step}, generation {address.generation}")  # noqa: T201
    return 0


def _opened(path: str | None) -> Files:
    from tlaunch.checkpoint.places import open_files

    if path is None:
        raise InputError("path: expected where a job keeps its checkpoints")
    return open_files(path)


def _chosen(files: Files, step: int | None) -> Sequence[Address]:
    """Return the committed checkpoints, or the newest of a step; never none."""
    from tlaunch.checkpoint import catalog

    if step is None:
        found = catalog.committed(files)
    else:
        newest = catalog.find(files, step)
        found = [newest] if newest is not None else []
    if not found:
        raise InputError(f"{files.root}: there is no checkpoint; expected the path that a job saves to")
    return found


def _manifest(files: Files, address: Address) -> Manifest:
    from tlaunch.checkpoint.catalog import manifest_of

    return manifest_of(files, address)


def _limit() -> int:
    from tlaunch.checkpoint.manifest import MAX_BYTES

    return MAX_BYTES


def _summary(address: Address, manifest: Manifest | str) -> dict[str, object]:
    known: dict[str, object] = {"step": address.step, "generation": address.generation}
    if isinstance(manifest, str):
        return {**known, "committed": manifest != "not committed", "problem": manifest}
    return {**known, "committed": True, "saved": manifest.created, "ranks": manifest.world, "bytes": manifest.size}


def _print_json(document: object) -> None:
    import json

    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _draw(picture: RenderableType) -> None:
    from rich.console import Console

    Console(highlight=False).print(picture)
