"""Finding the user's policy class. It is named on the agent's own command line, never in the store."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tlaunch.errors import InputError
from tlaunch.launcher.core.policy import Policy


def load_policy(name: str | None) -> Policy:
    """Import ``module:Class`` and make one; for ``None``, the default ladder.

    The working directory counts as on the path.

    Raises:
        InputError: it cannot be found, imported or made, or it is no :class:`Policy`.
    """
    if name is None:
        return Policy()
    module_name, colon, class_name = name.partition(":")
    if not (colon and module_name and class_name):
        raise InputError(f"--policy {name!r}: expected MODULE:CLASS, such as my_policy:MyPolicy")
    cwd = str(Path.cwd())
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except Exception as error:  # it is the user's code: anything may come out of it
        raise InputError(f"--policy {name}: importing {module_name} failed: {_brief(error)}") from error
    if found is None:
        raise InputError(f"--policy {name}: module {module_name} has no {class_name}")
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise InputError(f"--policy {name}: expected a subclass of tlaunch.Policy, found {found!r}")
    try:
        return found()
    except Exception as error:  # likewise
        raise InputError(f"--policy {name}: {class_name}() failed: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
