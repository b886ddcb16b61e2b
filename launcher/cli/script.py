"""Finding what is to be run, before anything is started, without importing or running any of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from tlaunch.errors import InputError
from tlaunch.launcher.cli.nearest import did_you_mean


def check_script(script: str) -> None:
    """Make sure that a script is there and can be read.

    Raises:
        InputError: it is not.
    """
    path = Path(script)
    if path.is_dir():
        raise InputError(f"script {script} is a directory; expected a Python file")
    if not path.is_file():
        raise InputError(f"no such script: {script}{_nearest(path)}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"cannot read the script {script}: {error.strerror}") from None


def _nearest(path: Path) -> str:
    try:
        scripts = [str(entry) for entry in path.parent.iterdir() if entry.suffix == ".py"]
    except OSError:
        return f"; there is no directory {path.parent}"
    return did_you_mean(str(path), scripts)


def check_module(name: str) -> None:
    """Make sure that ``python -m name`` would find something to run.

    A package is not imported to look into it, as ``importlib.util.find_spec`` would do: that may take seconds.

    Raises:
        InputError: there is no such module, or it is a package that cannot be run.
    """
    with _working_directory_first():
        spec = _find(name)
        if spec is None:
            raise InputError(f"no module named {name}, neither here nor installed")
        if spec.submodule_search_locations is not None and _find(f"{name}.__main__") is None:
            raise InputError(f"module {name} is a package without a __main__; expected a module that can be run")


def _find(name: str) -> ModuleSpec | None:
    spec: ModuleSpec | None = None
    path: Sequence[str] | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        if not parts[depth - 1].isidentifier() or (spec is not None and path is None):
            return None
        spec = _ask_finders(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def _ask_finders(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    found = (finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for spec in found if spec is not None), None)


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    """``python -m`` looks into the working directory before everything else."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        del sys.path[0]
