"""Making one committed checkpoint of ours from one of another format."""

from __future__ import annotations

import datetime as dt
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

from tlaunch.checkpoint.commit import commit
from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.files import why
from tlaunch.checkpoint.flows import contents, flows
from tlaunch.checkpoint.fresh import fresh
from tlaunch.checkpoint.generations import take_generation
from tlaunch.checkpoint.layout import DCP_PATHS, Address, is_reserved, shard_name
from tlaunch.checkpoint.manifest import Manifest
from tlaunch.checkpoint.naming import Rule, renamed
from tlaunch.checkpoint.shard import arrange, described, write_chunks
from tlaunch.checkpoint.source import Source
from tlaunch.checkpoint.values import Json

_FOLDER = re.compile(r"(?:checkpoint|global_step|step|iter)[-_]?(\d{1,15})")
"""Names of folders from which a step can be told."""


@dataclass(frozen=True, slots=True)
class Import:
    """What is to be written. ``reads``: bytes of tensors. ``lost``: names of values that are left out."""

    source: Source
    step: int
    names: dict[str, str]
    values: Mapping[str, Json]
    dtype: str | None
    reads: int
    lost: tuple[str, ...]


def prepare(source: Source, *, step: int | None, rules: Sequence[Rule], dtype: str | None, lossy: bool) -> Import:
    """Rename everything, and find out which step it is: ``step``, or what the source says, or 0.

    Raises:
        Unusable: the source is a checkpoint of ours; or new names make no sense; or a value cannot be represented and
            ``lossy`` does not allow for that.
    """
    if source.world is not None:
        raise Unusable(f"{source.where}: is a checkpoint of tlaunch already")
    if source.lost and not lossy:
        first, more = next(iter(source.lost.values())), len(source.lost) - 1
        also = f"; and {more} more" if more else ""
        raise Unusable(f"{source.where}: {first}{also} (--lossy leaves out what cannot be represented)")
    values = {name: value for name, value in source.values.items() if name != DCP_PATHS}
    names = renamed([*source.tensors, *values], rules)
    taken = next((new for new in names.values() if is_reserved(new)), None)
    if taken is not None:
        raise Unusable(f"{source.where}: {taken}: names that start so are taken; expected it to be renamed")
    if not names:
        raise Unusable(f"{source.where}: holds nothing that could be imported")
    kept = {names[name]: value for name, value in values.items()}
    if DCP_PATHS in source.values and all(old == new for old, new in names.items()):
        kept[DCP_PATHS] = source.values[DCP_PATHS]
    reads = sum(tensor.size for tensor in source.tensors.values())
    return Import(source, _step(source) if step is None else step, names, kept, dtype, reads, tuple(source.lost))


def _step(source: Source) -> int:
    said = source.values.get("step")
    if type(said) is int and said >= 0:
        return said
    match = _FOLDER.fullmatch(source.where.rstrip("/").rpartition("/")[2])
    return int(match[1]) if match else 0


def write(given: Import, path: str, told: Callable[[int], object] = lambda _: None) -> Address:
    """Write and commit it below a path that is empty, or not there yet.

    ``told`` is called with numbers of bytes that were read.

    Raises:
        Unusable: something is there already, or a number is too large for the type.
        Damaged: the source is.
        CheckpointError: it could not be written. What was, has been removed.
    """
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    pieces = flows(given.source, given.names, given.dtype, lambda _, chunk: told(len(chunk)))
    with fresh(path, sum(piece.size for piece in pieces)) as files:
        generation = take_generation(files, {"host": socket.gethostname(), "pid": os.getpid(), "since": now})
        address = Address(generation, given.step)
        software = {"tlaunch": version("tlaunch")}
        part = Manifest(given.step, generation, 1, (0,), now, values=given.values, software=software)
        layout = arrange(pieces)
        try:
            files.make(address.folder)
            file = write_chunks(files, address.folder, shard_name(0), contents(layout))
        except OSError as error:
            raise why(error, "writing a shard", f"{files.root}/{address.shard(0)}") from error
        commit(files, replace(part, files=(file,), tensors=described(layout.boxes)))
    return address
