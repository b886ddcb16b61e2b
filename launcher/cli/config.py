"""``--config``: a YAML file whose keys are the flags' names without the dashes in front."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NoReturn

from tlaunch.errors import InputError
from tlaunch.launcher.cli.flags import flags_of, read
from tlaunch.launcher.cli.options import RunOptions

MAX_BYTES = 1 << 20

MODULE = "module"
"""In a file this key names the module to run, in the place of ``script``."""


def load(path: str) -> RunOptions:
    """Read a configuration file.

    Values are read as if they stood on the command line: ``nodes: 4`` is ``--nodes 4``.

    Raises:
        InputError: the file cannot be read or does not hold what it should; the message names the line.
    """
    fields: dict[str, Any] = {}
    known = {flag.key: (name, flag) for name, flag in flags_of(RunOptions).items() if flag.in_file}
    for key, node in _top(path):
        if key == MODULE:
            fields |= {"module": True, "script": _word(path, key, node)}
        elif key not in known:
            near = difflib.get_close_matches(key, [*known, MODULE], 1)
            _fail(path, node, f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        else:
            name, flag = known[key]
            if flag.many:
                fields[name] = _words(path, key, node)
            else:
                fields[name] = read(flag, _word(path, key, node), f"{path}:{_line(node)}: {key}")
    return RunOptions(**fields)


def _top(path: str) -> list[tuple[str, Any]]:
    """Return the keys of the file, each with the YAML node of its value."""
    import yaml

    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"--config: cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: expected at most {MAX_BYTES} bytes")
    try:
        # Only the tree is built: no value ever becomes anything but the text that was written.
        top = yaml.compose(data, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: expected YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected YAML: {str(error).splitlines()[0]}") from None
    if top is None:
        return []
    if not isinstance(top, yaml.MappingNode):
        _fail(path, top, "expected lines such as 'nodes: 4'")
    return _unique(path, top)


def _unique(path: str, top: Any) -> list[tuple[str, Any]]:  # noqa: ANN401  a node of the YAML tree
    items: dict[str, Any] = {}
    for key_node, value_node in top.value:
        if not isinstance(key_node.value, str):
            _fail(path, key_node, "expected the name of an option, found something nested")
        if key_node.value in items:
            _fail(path, key_node, f"the key {key_node.value!r} stands twice")
        items[key_node.value] = value_node
    return list(items.items())


def _word(path: str, key: str, node: Any) -> str:  # noqa: ANN401
    if not isinstance(node.value, str) or node.tag.endswith(":null"):
        found = "nothing" if isinstance(node.value, str) else "something nested"
        _fail(path, node, f"{key}: expected one value, found {found}")
    return str(node.value)


def _words(path: str, key: str, node: Any) -> tuple[str, ...]:  # noqa: ANN401
    if not node.tag.endswith(":seq"):
        _fail(path, node, f"{key}: expected a list, such as [--steps, 30]")
    return tuple(_word(path, key, item) for item in node.value)


def _line(node: Any) -> int:  # noqa: ANN401
    return int(node.start_mark.line) + 1


def _fail(path: str, node: Any, problem: str) -> NoReturn:  # noqa: ANN401
    raise InputError(f"{path}:{_line(node)}: {problem}")
