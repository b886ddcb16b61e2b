"""What is not a tensor, as JSON: numbers, text, lists, mappings, and the few other types that training states hold.

JSON has fewer types than Python. What it lacks is an object with one key that starts with ``$``: ``{"$tuple": [...]}``,
``{"$bytes": "<base64>"}``, ``{"$float": "nan"}``, ``{"$dict": [[key, value], ...]}`` where a key is no text or starts
with ``$``. Anything else has no representation and is refused by name: nothing is ever pickled.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import TypeAlias

from tlaunch.checkpoint.errors import Damaged, Unusable

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

DEPTH = 100
"""How deep values may be nested."""

_SHOWN = 60

_BITS = 14_000
"""How many a whole number may have: Python reads and writes 4,300 digits."""

_EXACT = (bool, int, float, str, bytes, list, tuple)


def to_json(value: object, path: str, depth: int = DEPTH) -> Json:
    """Represent a value; ``path`` says where it stands in the state.

    Raises:
        Unusable: it has no representation.
    """
    if depth == 0:
        raise too_deep(path)
    if isinstance(value, dict):
        return _mapping(value, path, depth)
    # Other subclasses would come back as something else than they were: an IntEnum as a number, say.
    if value is None or type(value) in _EXACT:
        return _plain(value, path, depth)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    raise Unusable(
        f"{path}: a {name} has no representation; expected tensors, numbers, text, bytes, lists or mappings"
        + (", or this object at the top of the state" if hasattr(value, "state_dict") else "")
    )


def _plain(value: object, path: str, depth: int) -> Json:
    match value:
        case list() | tuple():
            items = [to_json(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        case bytes():
            return {"$bytes": base64.b64encode(value).decode()}
        case float() if not math.isfinite(value):
            return {"$float": repr(value)}
        case int() if value.bit_length() > _BITS:
            raise Unusable(f"{path}: a whole number of {value.bit_length()} bits; expected at most {_BITS}")
        case bool() | int() | float() | str():
            return value
        case _:
            return None


def too_deep(path: str) -> Unusable:
    """Return the error about a state that goes on and on at ``path``."""
    shown = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}..."
    return Unusable(f"{shown}: nested more than {DEPTH} deep, or within itself")


def _mapping(value: dict[object, object], path: str, depth: int) -> Json:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {str(key): to_json(item, f"{path}.{key}", depth - 1) for key, item in value.items()}
    pairs: list[Json] = []
    for key, item in value.items():
        place = f"{path}.{key}"
        pairs.append([to_json(key, f"{place} (the key)", depth - 1), to_json(item, place, depth - 1)])
    return {"$dict": pairs}


def from_json(data: Json, path: str, depth: int = DEPTH) -> object:
    """Return the value that :func:`to_json` has represented.

    Raises:
        Damaged: it is no such representation.
    """
    if depth == 0:
        raise Damaged(f"{path:.60}...: nested more than {DEPTH} deep")
    if isinstance(data, list):
        return [from_json(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    tag = next(iter(data), "")
    if not tag.startswith("$"):
        return {key: from_json(item, f"{path}.{key}", depth - 1) for key, item in data.items()}
    try:
        return _tagged(tag, data[tag], path, depth)
    except (TypeError, ValueError, binascii.Error) as error:
        raise Damaged(f"{path}: not a {tag}: {error}") from None


def _tagged(tag: str, data: Json, path: str, depth: int) -> object:
    if tag == "$tuple" and isinstance(data, list):
        return tuple(from_json(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(data))
    if tag == "$bytes" and isinstance(data, str):
        return base64.b64decode(data, validate=True)
    if tag == "$float" and data in ("nan", "inf", "-inf"):
        return float(str(data))
    if tag == "$dict" and isinstance(data, list):
        found: dict[object, object] = {}
        for pair in data:
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError("expected pairs")
            key = from_json(pair[0], f"{path} (a key)", depth - 1)
            found[key] = from_json(pair[1], f"{path}.{pair[0]}", depth - 1)
        return found
    raise ValueError("expected $tuple, $bytes, $float or $dict with what belongs to it")
