"""The core's dataclasses as JSON, and back.

The annotations of a frozen dataclass are its format: a document has exactly the fields of its class, no more and no
fewer, because everybody who takes part in a job runs the same version. The outermost object carries its class name
under ``"kind"``, and so does every object that stands where one of several classes may stand. Slots and meshes are
written as people write them.

Nothing that is read is trusted: documents are limited in size, and one that does not fit its class is one
:class:`CodecError` that names the document, the place in it, and what was expected there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from tlaunch.errors import TlaunchError
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Slot

MAX_BYTES = 1 << 20
"""The largest document. etcd refuses requests of more than 1.5 MiB."""

KIND = "kind"

T = TypeVar("T")

Value: TypeAlias = Any
"""Whatever a field or a JSON document may hold."""


class CodecError(TlaunchError):
    """A document that does not fit the class it should hold, or a value that cannot be written."""


class _Misfit(Exception):
    """``expected`` was not found at the place ``at``. Never leaves this module."""

    def __init__(self, at: str, expected: str, found: object) -> None:
        super().__init__(f"at {at.removeprefix('.') or 'the top'}: expected {expected}, found {_brief(found)}")
        self.at, self.expected, self.found = at, expected, found


@dataclass(frozen=True, slots=True)
class _Codec:
    """How values of one type are written and read. The second argument is the place, for messages."""

    name: str
    write: Callable[[Value, str], Value]
    read: Callable[[Value, str], Value]


def encode(obj: Value) -> bytes:
    """Write a dataclass instance as JSON.

    Raises:
        CodecError: a value does not have the type that its field declares, or the document is too long.
    """
    name = type(obj).__name__
    try:
        document = _one_of((type(obj),)).write(obj, "")
    except _Misfit as misfit:
        raise CodecError(f"cannot write {name}: {misfit}") from None
    data = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    if len(data) > MAX_BYTES:
        raise CodecError(f"cannot write {name}: it takes {len(data)} bytes, at most {MAX_BYTES} are allowed")
    return data


@overload
def decode(cls: type[T], data: bytes, where: str) -> T: ...
@overload
def decode(cls: UnionType, data: bytes, where: str) -> Value: ...


def decode(cls: type[T] | UnionType, data: bytes, where: str) -> Value:
    """Read an instance of ``cls``, or of one of a union of dataclasses. ``where`` names the document in errors.

    Raises:
        CodecError: the document does not fit.
    """
    if len(data) > MAX_BYTES:
        raise CodecError(f"{where}: {len(data)} bytes, at most {MAX_BYTES} are allowed")
    try:
        document = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
        return _one_of(get_args(cls) if isinstance(cls, UnionType) else (cls,)).read(document, "")
    except _Misfit as misfit:
        raise CodecError(f"{where}: {misfit}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end
        raise CodecError(f"{where}: expected a JSON document: {error}") from None


def _unique(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError(f"a key stands twice among {_brief([key for key, _ in pairs])}")
    return result


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@cache
def _codec(hint: Value) -> _Codec:
    """Build the codec of an annotation."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin: Value = get_origin(hint)
    args = get_args(hint)
    if origin is Literal:
        return _literal(args)
    if origin in (Union, UnionType):
        return _union(args)
    if origin is tuple:
        return _tuple(args)
    if origin is Mapping:
        return _mapping(_key(args[0]), _codec(args[1]))
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint)
    raise TypeError(f"the codec has no JSON for {hint!r}")


# --- plain values --------------------------------------------------------------------------------------------------


def _scalar(cls: type, name: str) -> _Codec:
    def same(value: Value, at: str) -> Value:
        if type(value) is not cls:  # exactly: True is not a number
            raise _Misfit(at, name, value)
        return value

    return _Codec(name, same, same)


def _float(value: Value, at: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _Misfit(at, "a finite number", value)
    return float(value)


def _text(cls: type, parse: Callable[[str], object], name: str) -> _Codec:
    """Values that are written as ``str()`` shows them."""

    def write(value: Value, at: str) -> str:
        if type(value) is not cls:
            raise _Misfit(at, name, value)
        return read_back(str(value), at)[0]

    def read_back(text: Value, at: str) -> tuple[str, object]:
        try:
            value = parse(text) if type(text) is str else None
        except (TlaunchError, ValueError):
            value = None
        if value is None or str(value) != text:  # one spelling only
            raise _Misfit(at, name, text)
        return text, value

    return _Codec(name, write, lambda text, at: read_back(text, at)[1])


def _literal(allowed: tuple[Value, ...]) -> _Codec:
    name = " or ".join(repr(value) for value in allowed)

    def same(value: Value, at: str) -> Value:
        if type(value) is not str or value not in allowed:
            raise _Misfit(at, name, value)
        return value

    return _Codec(name, same, same)


_INT = _scalar(int, "a whole number")
_PLAIN: Mapping[Value, _Codec] = {
    str: _scalar(str, "text"),
    int: _INT,
    bool: _scalar(bool, "true or false"),
    float: _Codec("a finite number", _float, _float),
    NoneType: _scalar(NoneType, "null"),
    Slot: _text(Slot, Slot.parse, "a slot such as 'node-03/gpu-2'"),
    Mesh: _text(Mesh, Mesh.parse, "a mesh such as 'dp=8,tp=4'"),
}


# --- containers ----------------------------------------------------------------------------------------------------


def _tuple(args: tuple[Value, ...]) -> _Codec:
    """``tuple[X, ...]`` and ``tuple[A, B]`` are both lists in JSON."""
    variadic = len(args) == 2 and args[1] is Ellipsis
    codecs = tuple(_codec(arg) for arg in (args[:1] if variadic else args))
    name = f"of any length, each item {codecs[0].name}" if variadic else "of " + ", ".join(c.name for c in codecs)

    def pairs(values: Value, at: str, cls: type[Value]) -> Iterator[tuple[_Codec, Value, str]]:
        if type(values) is not cls or not (variadic or len(values) == len(codecs)):
            raise _Misfit(at, f"a {cls.__name__} {name}", values)
        for index, value in enumerate(values):
            yield codecs[0 if variadic else index], value, f"{at}[{index}]"

    return _Codec(
        f"a list {name}",
        lambda values, at: [codec.write(value, place) for codec, value, place in pairs(values, at, tuple)],
        lambda values, at: tuple(codec.read(value, place) for codec, value, place in pairs(values, at, list)),
    )


def _key(hint: Value) -> _Codec:
    """The keys of a JSON object are text: whole numbers stand there in decimal."""
    return _text(int, int, "a whole number as text") if hint is int else _codec(hint)


def _mapping(key: _Codec, item: _Codec) -> _Codec:
    name = "an object"

    def write(values: Value, at: str) -> dict[str, Value]:
        if not isinstance(values, Mapping):
            raise _Misfit(at, "a mapping", values)
        return {key.write(k, f"{at}.{k}"): item.write(value, f"{at}.{k}") for k, value in values.items()}

    def read(values: Value, at: str) -> dict[Value, Value]:
        if type(values) is not dict:
            raise _Misfit(at, name, values)
        return {key.read(k, f"{at}.{k}"): item.read(value, f"{at}.{k}") for k, value in values.items()}

    return _Codec(name, write, read)


# --- dataclasses ---------------------------------------------------------------------------------------------------


def _record(cls: type[Value]) -> _Codec:
    hints = get_type_hints(cls)
    codecs = {field.name: _codec(hints[field.name]) for field in fields(cls)}
    name = f"an object ({cls.__name__})"

    def write(value: Value, at: str) -> dict[str, Value]:
        if type(value) is not cls:
            raise _Misfit(at, cls.__name__, value)
        return {key: codec.write(getattr(value, key), f"{at}.{key}") for key, codec in codecs.items()}

    def read(value: Value, at: str) -> Value:
        if type(value) is not dict:
            raise _Misfit(at, name, value)
        if missing := codecs.keys() - value.keys():
            raise _Misfit(at, f"{name} with the key {min(missing)!r}", value)
        if unknown := value.keys() - codecs.keys():
            raise _Misfit(at, f"only the keys of {cls.__name__}", min(unknown))
        try:
            return cls(**{key: codec.read(value[key], f"{at}.{key}") for key, codec in codecs.items()})
        except TlaunchError as error:  # the class has checks of its own
            raise _Misfit(at, f"{name} that makes sense ({error})", value) from None

    return _Codec(name, write, read)


def _union(args: tuple[Value, ...]) -> _Codec:
    """One alternative or null, or several dataclasses that are told apart by ``"kind"``."""
    members = tuple(arg for arg in args if arg is not NoneType)
    inner = _codec(members[0]) if len(members) == 1 else _one_of(members)
    return inner if len(members) == len(args) else _optional(inner)


def _optional(inner: _Codec) -> _Codec:
    def either(way: Callable[[Value, str], Value]) -> Callable[[Value, str], Value]:
        def convert(value: Value, at: str) -> Value:
            try:
                return None if value is None else way(value, at)
            except _Misfit as misfit:
                if misfit.at != at:
                    raise
                raise _Misfit(at, f"{misfit.expected} or null", misfit.found) from None

        return convert

    return _Codec(f"{inner.name} or null", either(inner.write), either(inner.read))


def _tellable(cls: type[Value]) -> _Codec:
    if not is_dataclass(cls) or cls in _PLAIN or KIND in get_type_hints(cls):
        raise TypeError(f"the codec cannot tell {cls!r} by its kind")
    return _codec(cls)


@cache
def _one_of(classes: tuple[Value, ...]) -> _Codec:
    """Dataclasses that are told apart by ``"kind"``."""
    by_name = {cls.__name__: _tellable(cls) for cls in classes}
    name = "an object with the kind " + " or ".join(repr(kind) for kind in by_name)

    def write(value: Value, at: str) -> dict[str, Value]:
        kind = type(value).__name__
        if kind not in by_name:
            raise _Misfit(at, " or ".join(by_name), value)
        return {KIND: kind, **by_name[kind].write(value, at)}

    def read(value: Value, at: str) -> Value:
        kind = value.get(KIND) if type(value) is dict else None
        if type(kind) is not str or kind not in by_name:
            raise _Misfit(at, name, value)
        return by_name[kind].read({key: item for key, item in value.items() if key != KIND}, at)

    return _Codec(name, write, read)
