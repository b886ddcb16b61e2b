"""What users pass that is neither a state nor a path, looked at before anything is done with it."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from tlaunch.checkpoint.errors import Unusable
from tlaunch.checkpoint.layout import STEPS


def whole(what: str, value: object, least: int) -> int:
    """Return a whole number of at least ``least``; those of NumPy and torch become Python's.

    Raises:
        Unusable: it is none.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise Unusable(f"{what}: expected a whole number of at least {least}, got {value!r}")
    return number


def step_of(value: object) -> int:
    """Return the number of a step.

    Raises:
        Unusable: it is none, or has more digits than there is room for.
    """
    step = whole("step", value, 0)
    if step >= STEPS:
        raise Unusable(f"step: expected a number below {STEPS}, got {step}")
    return step


def mesh_of(value: object) -> dict[str, int]:
    """Return names and sizes of a mesh's dimensions.

    Raises:
        Unusable: these are none.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise Unusable(f"mesh: expected names and sizes, such as {{'dp': 8, 'tp': 4}}, got {value!r}")
    return {name: whole(f"mesh: {name}", size, 1) for name, size in value.items()}
