"""From a path or URL to the file system behind it."""

from __future__ import annotations

import os
import re

from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.files import Files, LocalFiles
from tlaunch.checkpoint.objects import ObjectFiles

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def open_files(root: str | os.PathLike[str]) -> Files:
    """Return the file system for a path, made absolute, or for a URL.

    Raises:
        Unusable: it is neither, or nothing is installed for URLs of this kind.
    """
    text = _text_of(root)
    match = _URL.match(text)
    if match is None:
        if not text:
            raise Unusable("the path of the checkpoints is empty")
        return LocalFiles(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 - Path would follow links
    if match[1] == "file":
        return LocalFiles(os.path.abspath(match[2]))  # noqa: PTH100 - the same
    return ObjectFiles(text)


def _text_of(root: object) -> str:
    text = os.fspath(root) if isinstance(root, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise Unusable(f"the path of the checkpoints: expected a path or a URL, got {root!r}")
    return text
