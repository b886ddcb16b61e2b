"""Other names for what a checkpoint holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from tlaunch.checkpoint.errors import Unusable

Rule: TypeAlias = tuple[re.Pattern[str], str]
"""A regular expression, and what is put in place of each of its matches."""


def read_rule(text: str) -> Rule:
    r"""Read ``OLD=NEW``; the last ``=`` counts. ``NEW`` may use groups: ``\1``.

    Raises:
        ValueError: with what was expected.
    """
    old, equals, new = text.rpartition("=")
    if not equals or not old:
        raise ValueError("OLD=NEW, where OLD is a regular expression")
    try:
        return re.compile(old), new
    except re.error as error:
        raise ValueError(f"OLD=NEW, where OLD is a regular expression: {error}") from None


def renamed(names: Iterable[str], rules: Sequence[Rule], prefix: str = "") -> dict[str, str]:
    """Return new names by old ones: first without ``prefix``, then changed by each rule in turn.

    Raises:
        Unusable: a rule fits no name, or what comes out is no name, or two of them are the same.
    """
    found = {name: name.removeprefix(prefix) for name in names}
    for pattern, new in rules:
        try:
            changed = {name: pattern.sub(new, now) for name, now in found.items()}
        except (re.error, IndexError) as error:
            raise Unusable(f"rename {pattern.pattern}={new}: {error}") from None
        if found and not any(pattern.search(now) for now in found.values()):
            raise Unusable(f"rename {pattern.pattern}={new}: no name fits; one of them is {min(found.values())}")
        found = changed
    taken: dict[str, str] = {}
    for old, now in found.items():
        if not now or now.startswith(".") or now == "__metadata__":
            raise Unusable(f"{old}: would be called {now!r}, which is no name for a tensor")
        if now in taken:
            raise Unusable(f"{taken[now]} and {old} would both be called {now}")
        taken[now] = old
    return found
