"""``tlaunch checkpoint``: look at checkpoints, check them, and remove old ones. Without torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlaunch.errors import InputError
from tlaunch.launcher.cli.flags import flag, positional, switch, whole
from tlaunch.launcher.cli.printing import draw, progress, say

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    from tlaunch.checkpoint import catalog
    from tlaunch.checkpoint.errors import CheckpointError
    from tlaunch.checkpoint.layout import MANIFEST
    from tlaunch.checkpoint.opening import single

    files = _opened(given.path)
    folders: Sequence[tuple[Address, Sequence[str]]]
    if single(files) is not None:
        files, (address,) = _chosen(files, None)
        folders = [(address, [MANIFEST])]
    else:
        folders = catalog.folders(files)
    found: list[tuple[Address, Manifest | str]] = []
    for address, names in folders:
        try:
            found.append((address, catalog.manifest_of(files, address) if MANIFEST in names else "not committed"))
        except CheckpointError as error:
            found.append((address, str(error)))
    if not found:
        raise _nothing(files)
    if given.json:
        _print_json([_summary(*each) for each in found])
    else:
        from tlaunch.checkpoint.shown import table

        draw(table(found))
    return 0


def show(given: ShowOptions) -> int:
    """``tlaunch checkpoint show``."""
    from tlaunch.checkpoint.catalog import manifest_of
    from tlaunch.checkpoint.manifest import to_bytes
    from tlaunch.checkpoint.opening import locate, open_spot
    from tlaunch.checkpoint.places import open_files
    from tlaunch.checkpoint.shown import details, facts_of

    spot = locate(_opened(given.path).root, given.step)
    if spot.address is not None:
        manifest = manifest_of(open_files(spot.root), spot.address)
        if given.json:
            sys.stdout.write(to_bytes(manifest).decode())
        else:
            draw(*details(facts_of(manifest), manifest.tensors, manifest.values))
    elif given.json:
        raise InputError(f"{spot.root}: has no manifest; expected --json for a checkpoint of tlaunch")
    else:
        source = open_spot(spot)
        kind = "torch.distributed.checkpoint" if spot.kind == "dcp" else "safetensors"
        draw(*details([("format", kind)], source.tensors, source.values, source.lost))
    return 0


def verify(given: VerifyOptions) -> int:
    """``tlaunch checkpoint verify``: 1 when one of them is damaged; all are looked at before that."""
    from tlaunch.checkpoint import catalog, reading
    from tlaunch.checkpoint.errors import CheckpointError
    from tlaunch.checkpoint.shown import size

    files, chosen = _chosen(_opened(given.path), given.step)
    damaged = 0
    for address in chosen:
        try:
            manifest = catalog.manifest_of(files, address)
            with progress(f"step {address.step}", manifest.size) as told:
                count = reading.verify(files, address, manifest, told)
            found = f"{size(count)}, all as written"
        except CheckpointError as error:
            damaged += 1
            found = str(error)
        say(f"step {address.step}, generation {address.generation}: {found}")
    return 1 if damaged else 0


def prune(given: PruneOptions) -> int:
    """``tlaunch checkpoint prune``."""
    from tlaunch.checkpoint import catalog
    from tlaunch.checkpoint.catalog import Keep
    from tlaunch.checkpoint.generations import refuse_single

    files = _opened(given.path)
    if given.last is None:
        raise InputError("--last: expected how many of the newest checkpoints to keep")
    keep = Keep(given.last, given.every or 0)
    refuse_single(files)
    _, there = _chosen(files, None)
    for address in keep.superfluous(there) if given.dry_run else catalog.prune(files, keep):
        say(f"{'would remove' if given.dry_run else 'removed'} step {address.step}, generation {address.generation}")
    return 0


def _opened(path: str | None) -> Files:
    from tlaunch.checkpoint.places import open_files

    if path is None:
        raise InputError("path: expected where a job keeps its checkpoints")
    return open_files(path)


def _chosen(files: Files, step: int | None) -> tuple[Files, Sequence[Address]]:
    """Return all that are committed, or the newest of a step, or the one that the path is; never none."""
    from tlaunch.checkpoint import catalog
    from tlaunch.checkpoint.opening import locate, single
    from tlaunch.checkpoint.places import open_files

    if step is not None or single(files) is not None:
        spot = locate(files.root, step)
        found = [spot.address] if spot.address is not None else []
        files = open_files(spot.root)
    else:
        found = catalog.committed(files)
    if not found:
        raise _nothing(files)
    return files, found


def _nothing(files: Files) -> InputError:
    return InputError(f"{files.root}: there is no checkpoint; expected the path that a job saves to")


def _summary(address: Address, manifest: Manifest | str) -> dict[str, object]:
    known: dict[str, object] = {"step": address.step, "generation": address.generation}
    if isinstance(manifest, str):
        return {**known, "committed": manifest != "not committed", "problem": manifest}
    return {**known, "committed": True, "saved": manifest.created, "ranks": manifest.world, "bytes": manifest.size}


def _print_json(document: object) -> None:
    import json

    sys.stdout.write(json.dumps(document, indent=2) + "\n")
