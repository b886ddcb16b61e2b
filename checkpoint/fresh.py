"""A place to write to that was empty before, and is again when writing fails."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.files import Files, LocalFiles, why
from tlaunch.checkpoint.places import open_files


@contextlib.contextmanager
def fresh(target: str, size: int) -> Iterator[Files]:
    """Make a folder for ``size`` bytes, unless there is an empty one. What fails inside leaves it as it was.

    Raises:
        Unusable: something is there already.
        CheckpointError: it cannot be made, or there is too little space.
    """
    files = open_files(target)
    path = Path(files.root) if isinstance(files, LocalFiles) else None
    made: list[Path] = []
    try:
        if path is not None:
            made = [each for each in (path, *path.parents) if not each.exists()]
            if not made and not path.is_dir():
                raise Unusable(f"{path}: is a file; expected an empty folder or none")
        found = files.names()
        if found:
            raise Unusable(f"{files.root}: is not empty ({found[0]}); expected an empty folder or none")
        files.make("")
    except (FileExistsError, NotADirectoryError):
        raise Unusable(
            f"{files.root}: a file is in the way; expected an empty folder, or where one can be made"
        ) from None
    except OSError as error:
        raise why(error, "making the folder", files.root) from error
    try:
        if path is not None and (free := shutil.disk_usage(path).free) < size:
            raise CheckpointError(f"{path}: too little space: {free} bytes are free, {size} are needed")
        yield files
    except BaseException:
        with contextlib.suppress(OSError):
            for name in files.names():
                files.remove(name)
            for each in made:
                each.rmdir()
        raise
