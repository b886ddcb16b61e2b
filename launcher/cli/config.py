"""``--config``: a YAML file whose keys are the flags' names without the dashes in front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tlaunch.errors import InputError
from tlaunch.launcher.cli.flags import Flag, flags_of
from tlaunch.launcher.cli.options import RunOptions
from tlaunch.topology.yamltree import MAX_BYTES, Value, parse

MODULE = "module"
"""In a file this key names the module to run, in the place of ``script`` and ``-m``."""


def load(path: str) -> RunOptions:
    """Read a configuration file.

    Values are read as if they stood on the command line: ``nodes: 4`` is ``--nodes 4``.

    Raises:
        InputError: the file cannot be read or does not hold what it should; the message names the line.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--config {path}: {reason}; expected a YAML file") from None
    known = {flag.key: (name, flag) for name, flag in flags_of(RunOptions).items() if flag.in_file}
    given = parse(path, data).members("options such as 'nodes: 4'", [*known, MODULE])
    if MODULE in given and "script" in given:
        given[MODULE].fail("stands beside script; expected only one of them")
    fields: dict[str, Any] = {name: _read(flag, given[key]) for key, (name, flag) in known.items() if key in given}
    if MODULE in given:
        fields |= {"script": given[MODULE].text("the name of a module"), "module": True}
    return RunOptions(**fields)


def _read(flag: Flag, value: Value) -> object:
    if flag.many:
        items = value.items()
        if items is None:
            value.fail(f"expected a list such as [--steps, 30], got {value.kind}")
        return tuple(item.text("a word") for item in items)
    if flag.metavar is None:
        return value.choice(("true", "false")) == "true"
    word = value.text("one value")
    try:
        return flag.read(word)
    except ValueError as error:
        value.fail(f"expected {error}, got {word!r}")
