"""A strict reader of YAML: every error is one line with the file, line, place in the tree and what was expected.

Nothing is constructed from the file but text, whole numbers, lists and mappings.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn

import yaml

from tlaunch.topology.model import TopologyError

MAX_BYTES = 1 << 20
_SHOWN = 60


def parse(source: str, data: bytes) -> Value:
    """Read one YAML document. ``source`` names the file in errors; raises ``TopologyError``."""
    if len(data) > MAX_BYTES:
        raise TopologyError(f"{source}: larger than {MAX_BYTES >> 20} MiB; expected a short YAML file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TopologyError(f"{source}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; expected text") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        why = ", ".join(part for part in (error.context, error.problem) if part)
        # The natural slip: [node-[00-17]], where YAML takes the inner bracket for a list.
        hint = "; a pattern such as 'node-[00-17]' inside a list needs quotes" if "flow sequence" in why else ""
        raise TopologyError(f"{source}:{line}: not YAML: {why}{hint}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TopologyError(f"{source}:{line}: a control character; expected text") from None
    except RecursionError:
        raise TopologyError(f"{source}: nested too deeply; expected a few levels") from None
    if root is None:
        raise TopologyError(f"{source}: empty; expected a mapping")
    return Value(source, "", root.start_mark.line + 1, root)


def shown(text: str) -> str:
    """Quote what a user wrote, on one line and not too long."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def nearest(word: str, words: Collection[str]) -> str:
    """Suggest the nearest of ``words``, or list them all."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(words)}"


@dataclass(frozen=True, slots=True)
class Value:
    """A value in the file. ``place`` is the way to it from the top, such as ``racks.rack-00.nodes``."""

    source: str
    place: str
    line: int
    node: yaml.Node

    def fail(self, problem: str) -> NoReturn:
        """Raise the error that names this place."""
        place = f" {self.place}:" if self.place else ""
        raise TopologyError(f"{self.source}:{self.line}:{place} {problem}")

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    @property
    def kind(self) -> str:
        """What stands here, for people."""
        if isinstance(self.node, yaml.ScalarNode):
            return "nothing" if self.node.tag.endswith(":null") else shown(self.node.value)
        return "a mapping" if self.is_mapping else "a list"

    def mapping(self, what: str) -> Mapping[str, Value]:
        """Return the members of a mapping with any keys. ``what``: what was expected here."""
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"expected {what}, got {self.kind}")
        members: dict[str, Value] = {}
        for key, value in self.node.value:
            line = key.start_mark.line + 1
            here = Value(self.source, self.place, line, key)
            if not isinstance(key, yaml.ScalarNode) or not key.value:
                here.fail(f"expected a name as the key, got {here.kind}")
            name = key.value
            if name in members:
                here.fail(f"the key {shown(name)} stands twice, first on line {members[name].line}")
            safe = name if name.isprintable() and len(name) <= _SHOWN else shown(name)
            members[name] = Value(self.source, f"{self.place}.{safe}".removeprefix("."), line, value)
        return members

    def members(self, what: str, keys: Collection[str]) -> Mapping[str, Value]:
        """Return the members of a mapping that has only the given keys."""
        members = self.mapping(what)
        for name, value in members.items():
            if name not in keys:
                here = Value(self.source, self.place, value.line, value.node)
                here.fail(f"unknown key {shown(name)}; {nearest(name, keys)}")
        return members

    def items(self) -> list[Value] | None:
        """Return the items of a list, ``None`` when this is no list."""
        if not isinstance(self.node, yaml.SequenceNode):
            return None
        return [
            Value(self.source, f"{self.place}[{index}]", item.start_mark.line + 1, item)
            for index, item in enumerate(self.node.value)
        ]

    def text(self, what: str) -> str:
        """Return a scalar as it is written."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag.endswith(":null"):
            self.fail(f"expected {what}, got {self.kind}")
        value: str = self.node.value
        return value

    def name(self, what: str) -> str:
        """Return a scalar that can name a node, a rack, a domain or a pod."""
        text = self.text(what)
        if not is_name(text):
            self.fail(f"{shown(text)} cannot be a name; expected {what} of letters, digits, '.', '_' and '-'")
        return text

    def number(self, low: int, high: int) -> int:
        """Return a whole number between two bounds."""
        what = f"a whole number from {low} to {high}"
        text = self.text(what)
        # YAML 1.1 would read 010 as 8 and 1:30 as 90; here a number is what people take it for.
        if not re.fullmatch(r"0|[1-9][0-9]{0,17}", text) or not self.node.tag.endswith(":int"):
            self.fail(f"expected {what}, got {shown(text)}")
        if not low <= int(text) <= high:
            self.fail(f"expected {what}, got {text}")
        return int(text)

    def choice(self, words: Collection[str]) -> str:
        """Return one of a few words."""
        text = self.text(f"one of {', '.join(words)}")
        if text not in words:
            self.fail(f"{shown(text)} is unknown; {nearest(text, words)}")
        return text


def is_name(text: str) -> bool:
    """Tell whether a text can be a name: it becomes a part of store keys, paths and labels."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text) is not None
