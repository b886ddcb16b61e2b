"""Checkpoints on an object store, or on anything else that ``fsspec`` knows: ``s3://``, ``gs://``, ``memory://``.

Objects cannot be renamed, but an object appears only when it is complete, which is all that is needed.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Iterable
from typing import Any, TypeAlias

from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.files import DRAFT, Buffer
from tlaunch.checkpoint.layout import MANIFEST

FileSystem: TypeAlias = Any
"""An ``fsspec.AbstractFileSystem``; fsspec has no types."""


class ObjectFiles:
    """A prefix of an object store. See :class:`~tlaunch.checkpoint.files.Files`."""

    def __init__(self, url: str) -> None:
        """Connect to the store behind a URL.

        Raises:
            Unusable: no file system is installed for URLs of this kind.
        """
        import fsspec

        try:
            self._fs: FileSystem
            self._fs, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise Unusable(f"{url}: no file system for it: {error}") from None
        self._path = str(path).rstrip("/")
        self._url = url.rstrip("/")

    @property
    def root(self) -> str:
        return self._url

    def make(self, folder: str) -> None:
        """Nothing to do on most stores, which have no folders."""
        with contextlib.suppress(FileExistsError):
            self._fs.makedirs(self._at(folder), exist_ok=True)

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        path = self._at(name)
        if isinstance(chunks, list) and len(chunks) == 1:
            self._fs.pipe_file(path, bytes(chunks[0]))
            return
        # Not committed by closing: what broke off must not become an object.
        file = self._fs.open(path, "wb", autocommit=False)
        try:
            with file:
                for chunk in chunks:
                    file.write(chunk)
        except BaseException:
            with contextlib.suppress(Exception):
                file.discard()
            with contextlib.suppress(Exception):
                self._fs.rm(path)  # some file systems do not wait for the commit
            raise
        file.commit()

    def create(self, name: str, data: bytes) -> None:
        # Not every store can write on the condition that there is nothing yet, and fsspec does not tell which can.
        # So everybody first lays a claim, and gives way if there is another: of two claims one at least is seen.
        folder, _, plain = name.rpartition("/")
        claim = f"{DRAFT}{secrets.token_hex(8)}-{plain}"
        path = self._at(f"{folder}/{claim}" if folder else claim)
        self._fs.pipe_file(path, b"-")
        try:
            names = self.names(folder)
            others = (other for other in names if other.startswith(DRAFT) and other.endswith(f"-{plain}"))
            if plain in names or any(other != claim for other in others):
                raise FileExistsError(name)
            self._fs.pipe_file(self._at(name), data)
        finally:
            with contextlib.suppress(Exception):
                self._fs.rm_file(path)

    def settle(self, folder: str) -> None:
        """Nothing to do: an object that is seen is durable."""

    def space(self) -> int | None:
        return None

    def read(self, name: str, limit: int) -> bytes:
        return bytes(self._fs.cat_file(self._at(name), start=0, end=limit))

    def read_into(self, name: str, begin: int, *buffers: memoryview) -> int:
        data = memoryview(self._fs.cat_file(self._at(name), start=begin, end=begin + sum(map(len, buffers))))
        left = data
        for buffer in buffers:
            part = left[: len(buffer)]
            buffer[: len(part)] = part
            left = left[len(part) :]
        return len(data)

    def size(self, name: str) -> int:
        return int(self._fs.size(self._at(name)))

    def names(self, folder: str = "") -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._at(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Asked for an object instead of a folder, stores answer with that object.
        inside = (str(path).rstrip("/") for path in found if str(path).strip("/") != self._at(folder).strip("/"))
        return sorted({path.rpartition("/")[2] for path in inside})

    def remove(self, name: str) -> None:
        # The manifest first: from then on nobody takes what is left for a checkpoint.
        for path in itertools.chain([f"{name}/{MANIFEST}"], [name]):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._fs.rm(self._at(path), recursive=path == name)

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path
