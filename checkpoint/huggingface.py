"""Reading the layout of Hugging Face: safetensors files, and an index that says which holds what. Without torch.

Such a directory holds a model, so that its tensors are called ``model.<name>`` here, as in a state that holds the
model as ``model``. There are no checksums in this format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tlaunch.checkpoint.dtypes import BYTES
from tlaunch.checkpoint.errors import Damaged, Unusable
from tlaunch.checkpoint.files import Files, read_foreign, why
from tlaunch.checkpoint.layout import SUFFIX, is_plain
from tlaunch.checkpoint.manifest import Slice, Tensor
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.source import Source
from tlaunch.checkpoint.tree import Node, parse

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODEL = "model."
"""How the names of a model's tensors start in a state."""

_MAX_BYTES = 256 << 20
"""Of an index, and of a header."""

_ONE_OF_MANY = re.compile(r".*-\d{5}-of-(?!00001)\d{5}\.safetensors")


def model_files(names: Sequence[str]) -> list[str]:
    """Return the names of safetensors files and indices, without those that are still being written."""
    return [name for name in names if name.endswith((SUFFIX, f"{SUFFIX}.index.json")) and not name.startswith(".")]


def open_directory(files: Files) -> Source:
    """Return what the files of a directory hold.

    Raises:
        Unusable: it cannot be said which files belong to the model.
        Damaged: a file is missing, or is not what safetensors writes.
    """
    names = model_files(files.names())
    indices = [name for name in names if name.endswith(f"{SUFFIX}.index.json")]
    shards = [name for name in names if name not in indices]
    if WHOLE in shards and not indices:
        shards = [WHOLE]
    if len(indices) == 1:
        return _indexed(files, indices[0])
    if indices or len(shards) > 1 or _ONE_OF_MANY.fullmatch(shards[0]):
        found = ", ".join(indices or shards)
        raise Unusable(f"{files.root}: expected {INDEX}, {WHOLE}, or one file that is all; found {found:.200}")
    return open_file(files, shards[0])


def open_file(files: Files, name: str) -> Source:
    """Return what one file holds.

    Raises:
        Damaged: it is not what safetensors writes.
    """
    return _source(files, [name], {MODEL + key: tensor for key, tensor in _tensors(files, name, 0)})


def _source(files: Files, names: Sequence[str], tensors: dict[str, Tensor]) -> Source:
    return Source(files.root, tensors, lambda: PlainReader(files, names))


def _indexed(files: Files, index: str) -> Source:
    where = f"{files.root}/{index}"
    data = read_foreign(files, index, _MAX_BYTES, "reading the index")
    homes = {}
    for key, node in parse(data, where).at("weight_map").entries():
        homes[key] = node.text()
        if not is_plain(homes[key]) or not homes[key].endswith(SUFFIX):
            raise node.misfit("the plain name of a safetensors file")
    if not homes:
        raise Damaged(f"{where}: names no tensor")
    names = sorted(set(homes.values()))
    missing = sorted(set(names).difference(files.names()))
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Damaged(f"{files.root}/{missing[0]}: this shard is missing{more}; {where} names it")
    tensors: dict[str, Tensor] = {}
    for number, name in enumerate(names):
        for key, tensor in _tensors(files, name, number):
            if homes.get(key) != name:
                said = homes.get(key, "nowhere")
                raise Damaged(f"{files.root}/{name}: holds {key}, which is in {said} according to {index}")
            tensors[MODEL + key] = tensor
    lacking = [key for key in homes if MODEL + key not in tensors]
    if lacking:
        raise Damaged(f"{files.root}/{homes[lacking[0]]}: lacks {lacking[0]}, which is in it according to {index}")
    return _source(files, names, tensors)


def _tensors(files: Files, name: str, number: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one file, the ``number``-th of those that are read."""
    where = f"{files.root}/{name}"
    reader = PlainReader(files, [name])
    head = bytearray(8)
    reader.fill(0, 0, memoryview(head))
    size = int.from_bytes(head, "little")
    if size > _MAX_BYTES:
        raise Damaged(f"{where}: expected a safetensors file; its first bytes are not the size of a header")
    try:
        rest = files.size(name) - 8 - size
    except OSError as error:
        raise why(error, "looking at a file", where) from error
    if rest < 0:
        raise Damaged(f"{where}: this file ends after {8 + size + rest} bytes, expected at least {8 + size}")
    header = bytearray(size)
    reader.fill(0, 8, memoryview(header))
    spans = []
    for key, node in parse(bytes(header), where).entries():
        if key != "__metadata__":
            tensor, begin, stop = _tensor(node, number, 8 + size)
            spans.append((begin, stop, key))
            yield key, tensor
    # They lie one right after the other: where two share bytes, a small file is a large model.
    end = 0
    for begin, stop, key in sorted(spans):
        if begin != end:
            raise Damaged(
                f"{where}: {key} begins at byte {begin} of the tensors, expected {end}, without gap or overlap"
            )
        end = stop
    if end != rest:
        raise Damaged(f"{where}: has {rest} bytes of tensors, expected {end}")


def _tensor(node: Node, number: int, data: int) -> tuple[Tensor, int, int]:
    """Return a tensor, and where it begins and ends behind the header, whose end is byte ``data`` of the file."""
    dtype = node.at("dtype").text()
    if dtype not in BYTES:
        raise node.at("dtype").misfit(f"one of {', '.join(BYTES)}")
    shape = node.at("shape").numbers()
    offsets = [item.number() for item in node.at("data_offsets").items()]
    whole = Region.whole(shape)
    if len(offsets) != 2 or offsets[1] - offsets[0] != whole.volume * BYTES[dtype]:
        raise node.at("data_offsets").misfit(f"begin and end of {whole.volume * BYTES[dtype]} bytes")
    return Tensor(dtype, shape, (Slice(number, data + offsets[0], whole),)), offsets[0], offsets[1]


class PlainReader:
    """Reads files that have no checksums."""

    def __init__(self, files: Files, names: Sequence[str]) -> None:
        self._files = files
        self._names = names

    def fill(self, file: int, begin: int, out: memoryview) -> None:
        name = self._names[file]
        where = f"{self._files.root}/{name}"
        try:
            count = self._files.read_into(name, begin, out)
        except OSError as error:
            raise why(error, f"reading bytes {begin} to {begin + len(out)}", where) from error
        if count < len(out):
            raise Damaged(f"{where}: this file ends after {begin + count} bytes, expected at least {begin + len(out)}")
