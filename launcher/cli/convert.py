"""``tlaunch checkpoint export`` and ``import``: from our format to that of others, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlaunch.errors import InputError
from tlaunch.launcher.cli.flags import choice, flag, positional, several, switch, whole
from tlaunch.launcher.cli.printing import counted, progress, say

if TYPE_CHECKING:
    from tlaunch.checkpoint.naming import Rule

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_LISTED = 8
"""Names in a line, at most."""

_RENAME = "Put NEW for each match of the regular expression OLD in names; may be given several times."
_DTYPE = "Cast floating-point tensors: bf16, fp16 or fp32 (default: as they are)."


def _rule(word: str) -> Rule:
    from tlaunch.checkpoint.naming import read_rule

    return read_rule(word)


def _bytes(word: str) -> int:
    match = re.fullmatch(r"(\d{1,15})([A-Za-z]*)", word)
    if match is None or match[2].upper() not in _UNITS or int(match[1]) == 0:
        raise ValueError("a size, such as 5GB or 500MB")
    return int(match[1]) * _UNITS[match[2].upper()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """``tlaunch checkpoint export``."""

    hf: bool = switch("--hf", "In the layout of Hugging Face: the only one there is, and the default.")
    step: int | None = flag("--step", "N", "Which checkpoint (default: the newest).", whole(0))
    prefix: str | None = flag(
        "--prefix", "P", "Take the tensors whose names start so, and take that off (default: model.).", str
    )
    rename: tuple[Rule, ...] = several("--rename", "OLD=NEW", _RENAME, _rule)
    dtype: str | None = flag("--dtype", "TYPE", _DTYPE, choice("bf16", "fp16", "fp32"))
    shard_size: int | None = flag("--shard-size", "SIZE", "Start another file at this size (default: 5GB).", _bytes)
    path: str | None = positional("PATH", "Where a job keeps its checkpoints: a folder or a URL.")
    target: str | None = positional("TARGET", "Where to write the model: an empty folder, or one to be made.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """``tlaunch checkpoint import``."""

    step: int | None = flag("--step", "N", "As which step (default: what the source says, or 0).", whole(0))
    rename: tuple[Rule, ...] = several("--rename", "OLD=NEW", _RENAME, _rule)
    dtype: str | None = flag("--dtype", "TYPE", _DTYPE, choice("bf16", "fp16", "fp32"))
    lossy: bool = switch("--lossy", "Leave out values that have no representation, and name them.")
    source: str | None = positional("SOURCE", "A directory of torch.distributed.checkpoint, or safetensors files.")
    path: str | None = positional("PATH", "Where to keep the checkpoint: an empty folder, or one to be made.")


def export(given: ExportOptions) -> int:
    """``tlaunch checkpoint export``."""
    from tlaunch.checkpoint import exporting
    from tlaunch.checkpoint.opening import open_source
    from tlaunch.checkpoint.shown import size

    if given.path is None or given.target is None:
        raise InputError("export: expected PATH, where a job keeps its checkpoints, and TARGET")
    prepared = exporting.prepare(
        open_source(given.path, given.step),
        prefix="model." if given.prefix is None else given.prefix,
        rules=given.rename,
        dtype=given.dtype,
        shard_size=given.shard_size or exporting.SHARD_SIZE,
    )
    with progress("exporting", prepared.reads) as told:
        done = exporting.write(prepared, given.target, told)
    files = done.files[0] if len(done.files) == 1 else f"{len(done.files) - 1} shards and {done.files[-1]}"
    what = f"{counted(len(prepared.names), 'tensor')}, {size(done.size)}"
    say(f"{given.target}: {what} of {prepared.source.where}: {files}")
    for part, count in prepared.left.items():
        say(f"left out: {counted(count, 'tensor')} of {part}")
    if prepared.values:
        say(f"left out: {counted(prepared.values, 'value')}, for which this layout has no place")
    for names in done.same:
        more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        say(f"the same bytes under each of these names, as tied weights have: {', '.join(names[:_LISTED])}{more}")
    return 0


def import_(given: ImportOptions) -> int:
    """``tlaunch checkpoint import``."""
    from tlaunch.checkpoint import importing
    from tlaunch.checkpoint.opening import open_source
    from tlaunch.checkpoint.shown import size

    if given.source is None or given.path is None:
        raise InputError("import: expected SOURCE, and PATH, where to keep the checkpoint")
    prepared = importing.prepare(
        open_source(given.source), step=given.step, rules=given.rename, dtype=given.dtype, lossy=given.lossy
    )
    with progress("importing", prepared.reads) as told:
        importing.write(prepared, given.path, told)
    what = f"{counted(len(prepared.source.tensors), 'tensor')}, {size(prepared.reads)}"
    values = counted(sum(name != "dcp.paths" for name in prepared.values), "value")
    say(f"{given.path}: step {prepared.step}: {what}, and {values} of {prepared.source.where}")
    for name in prepared.lost:
        say(f"left out: {prepared.source.lost[name]}")
    return 0
