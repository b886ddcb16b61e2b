"""How options are declared: once, as the fields of a dataclass, for the command line and the configuration file alike.

Both sources hand over text, and both are read by the same readers, so that they accept the same and complain in the
same words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from tlaunch.errors import InputError

T = TypeVar("T")

Reader: TypeAlias = Callable[[str], Any]
"""From text to the value of the field. Raises ``ValueError`` with what was expected."""

_KEY = "flag"


def text(value: str) -> str:
    """Read text."""
    if not value:
        raise ValueError("some text")
    return value


def whole(at_least: int) -> Reader:
    """Make the reader of a whole number."""

    def read(value: str) -> int:
        if not (value.isascii() and value.isdigit() and int(value) >= at_least):
            raise ValueError(f"a whole number of at least {at_least}")
        return int(value)

    return read


def choice(*names: str) -> Reader:
    """Make the reader of one of a few words."""

    def read(value: str) -> str:
        if value not in names:
            raise ValueError(f"{', '.join(names[:-1])} or {names[-1]}")
        return value

    return read


@dataclass(frozen=True, slots=True)
class Flag:
    """One option. ``name`` is spelled as on the command line, a word without dashes takes its place by position.

    ``metavar`` stands for the value; without one the flag is a switch. ``many``: a word takes all that are left,
    a flag may be given several times.
    ``in_file``: may stand in a configuration file, under its name without dashes.
    """

    name: str
    help: str
    metavar: str | None = None
    read: Reader = text
    panel: str | None = None
    many: bool = False
    in_file: bool = True

    @property
    def is_positional(self) -> bool:
        return not self.name.startswith("-")

    @property
    def key(self) -> str:
        """The key in a configuration file."""
        return self.name.lstrip("-").lower()


def flag(
    name: str, metavar: str, explanation: str, read: Reader = text, *, panel: str | None = None, in_file: bool = True
) -> Any:  # noqa: ANN401  the field may have any type, as with dataclasses.field
    """Declare a field that a flag sets; it is ``None`` unless given."""
    declared = Flag(name, explanation, metavar, read, panel, in_file=in_file)
    return dataclasses.field(default=None, metadata={_KEY: declared})


def several(name: str, metavar: str, explanation: str, read: Reader = text) -> Any:  # noqa: ANN401  as above
    """Declare a field that a flag adds to, each time that it is given."""
    return dataclasses.field(default=(), metadata={_KEY: Flag(name, explanation, metavar, read, many=True)})


def switch(name: str, explanation: str, *, panel: str | None = None, in_file: bool = False) -> Any:  # noqa: ANN401  as above
    """Declare a field that is true when its flag is given."""
    return dataclasses.field(default=False, metadata={_KEY: Flag(name, explanation, panel=panel, in_file=in_file)})


def positional(name: str, explanation: str) -> Any:  # noqa: ANN401  as above
    """Declare a field that a word without dashes sets."""
    return dataclasses.field(default=None, metadata={_KEY: Flag(name, explanation, name)})


def rest(name: str, explanation: str) -> Any:  # noqa: ANN401  as above
    """Declare a field that takes all the words that are left."""
    return dataclasses.field(default=(), metadata={_KEY: Flag(name, explanation, name, many=True)})


def flags_of(cls: type[Any]) -> Mapping[str, Flag]:
    """Return the flags of an options class by field: its own, then those that it inherits."""
    fields = {field.name: field for field in dataclasses.fields(cls) if _KEY in field.metadata}
    order = [name for part in cls.__mro__ for name in vars(part).get("__annotations__", {}) if name in fields]
    return {name: fields[name].metadata[_KEY] for name in order}


def read_words(cls: type[T], words: Mapping[str, Any]) -> T:
    """Make an options object from words of the command line, by field; ``None`` where none was given.

    Raises:
        InputError: a value is not what its flag takes.
    """
    declared = flags_of(cls)
    given = {name: word for name, word in words.items() if word is not None}
    return cls(**{name: _value(declared[name], word) for name, word in given.items()})


def _value(declared: Flag, word: str | bool | list[str]) -> object:  # noqa: FBT001  a switch's word is a bool
    if isinstance(word, bool):
        return word
    if isinstance(word, list) and declared.is_positional:
        return tuple(word)
    try:
        return tuple(map(declared.read, word)) if isinstance(word, list) else declared.read(word)
    except ValueError as error:
        raise InputError(f"{declared.name}: expected {error}, got {word!r}") from None
