"""Whether checkpoints that :func:`tests.checkpoint.writing.save` has written are as they were, to the last byte."""

from __future__ import annotations

from tests.checkpoint.writing import numbers
from tlaunch.checkpoint.catalog import committed, manifest_of
from tlaunch.checkpoint.files import DRAFT, TRASH, Files
from tlaunch.checkpoint.generations import newest_generation
from tlaunch.checkpoint.layout import MANIFEST, Address, address_of, generation_of, rank_of
from tlaunch.checkpoint.reading import ShardReader, verify


def check(files: Files, address: Address) -> None:
    """Check every byte of a checkpoint, and compare its numbers with what was saved."""
    manifest = manifest_of(files, address)
    verify(files, address, manifest)
    out = memoryview(bytearray(32))
    for at in manifest.tensors["w"].slices:
        ShardReader(files, address, manifest).fill(at.file, at.begin, out)
        assert out == numbers(address.step, at.region.offset[0])


def check_all(files: Files) -> None:
    """Check all that are committed: there is one at least."""
    found = committed(files)
    assert found
    for address in found:
        check(files, address)


def leftovers(files: Files) -> list[str]:
    """Return what is there and belongs to no committed checkpoint, nor to the newest writer."""
    left = []
    for name in files.names():
        if address_of(name) is not None:
            inside = files.names(name)
            left += [f"{name}/{file}" for file in inside if file.startswith(DRAFT) or rank_of(file) is not None]
            left += [name] if MANIFEST not in inside else []
        elif generation_of(name) != newest_generation(files) or name.startswith((DRAFT, TRASH)):
            left.append(name)
    return left
