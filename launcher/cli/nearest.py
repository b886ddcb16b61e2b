"""What somebody who mistyped a name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean ...?`` with the name that is most like ``word``, or nothing when none is."""
    names = {name.lstrip("-"): name for name in known}  # dashes that all flags share make none of them more alike
    near = difflib.get_close_matches(word.lstrip("-"), list(names), 1)
    return f"; did you mean {names[near[0]]}?" if near else ""
