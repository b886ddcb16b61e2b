"""From a path or URL to the file system behind it."""

from __future__ import annotations

import os
import re

from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.files import Files, LocalFiles
from tlaunch.checkpoint.objects import ObjectFiles

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)


def open_files(root: str | os.PathLike[str]) -> Files:
    """Return the file system for a path, made absolute, or for a URL.

    Raises:
        Unusable: nothing is installed for URLs of this kind.
    """
    text = os.fspath(root)
    match = _URL.match(text)
    if match is None:
        if not text:
            raise Unusable("the path of the checkpoints is empty")
        return LocalFiles(os.path.abspath(text))  # noqa: PTH100 - Path.resolve would follow links that may change
    if match[1] == "file":
        return LocalFiles(match[2])
    return ObjectFiles(text)
