from __future__ import annotations

import enum
import json
import random
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlaunch.checkpoint.errors import Damaged, Unusable
from tlaunch.checkpoint.values import Json, from_json, to_json

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
values = st.recursive(
    plain, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner), max_leaves=20
)


def same(one: object, other: object) -> bool:
    """Compare with types: 1, 1.0 and True are three things."""
    return repr(one) == repr(other)


@given(values)
def test_values_come_back_as_they_were(value: object) -> None:
    text = json.dumps(to_json(value, "x"), allow_nan=False)
    assert same(from_json(json.loads(text), "x"), value)


def test_what_json_lacks() -> None:
    state = {"nan": float("nan"), "inf": -float("inf"), "$odd": 1, 3: (1, b"\xff"), "rng": random.Random(1).getstate()}
    back = from_json(json.loads(json.dumps(to_json(state, "x"), allow_nan=False)), "x")
    assert same(back, state)
    assert from_json(to_json(OrderedDict(a=1), "x"), "x") == {"a": 1}


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, object()]}, "state.a[1]: a builtins.object"),
        ({"a": {"b": Colour.RED}}, "state.a.b: a test_values.Colour"),
        ({"a": {1, 2}}, "state.a: a builtins.set"),
        ({object: 1}, "(the key): a builtins.type"),
        ({"f": print}, "state.f: a builtins.builtin_function_or_method"),
    ],
)
def test_what_has_no_representation_is_named(value: object, where: str) -> None:
    with pytest.raises(Unusable) as error:
        to_json(value, "state")
    assert where.replace("test_values", Colour.__module__) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_that_holds_itself() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(Unusable, match="nested more than 100 deep"):
        to_json(loop, "state")


def test_a_file_that_nests_deeper_than_any_value() -> None:
    deep: Json = [{"a": {"$tuple": [{"$dict": [[1, 2]]}]}}]
    for _ in range(900):
        deep = [deep]
    with pytest.raises(Damaged, match="nested more than 100 deep"):
        from_json(deep, "state")


@pytest.mark.parametrize(
    "data",
    [
        {"$tuple": 1}, {"$bytes": "!"}, {"$bytes": 3}, {"$float": "1e3"}, {"$dict": [[1]]}, {"$dict": {}}, {"$new": 1},
        {"$dict": [[[1], 2]]},
    ],
)  # fmt: skip
def test_what_is_no_representation(data: object) -> None:
    with pytest.raises(Damaged, match=r"^state\.a: not a \$"):
        from_json({"a": data}, "state")  # type: ignore[dict-item]
