"""Files that others have written, read with limits: text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

from tlaunch.topology.model import TopologyError
from tlaunch.topology.yamltree import shown

MAX_BYTES = 64 << 20
"""``kubectl get nodes -o json`` of a few thousand nodes has tens of megabytes."""


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        TopologyError: it cannot be read, is larger than ``MAX_BYTES``, or is not UTF-8.
    """
    label = str(path) if str(path).isprintable() else shown(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except ValueError:  # a null character in the path
        raise TopologyError(f"{label}: no such file") from None
    except OSError as error:
        raise TopologyError(f"{label}: {error.strerror}; expected labels or JSON") from None
    if len(data) > MAX_BYTES:
        raise TopologyError(f"{label}: larger than {MAX_BYTES >> 20} MiB; expected labels or JSON")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TopologyError(f"{label}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; expected text") from None


def parse_json(origin: str, text: str) -> object:
    """Return a JSON document; raises ``TopologyError`` with the line of the mistake."""
    try:
        document: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise TopologyError(f"{origin}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError):  # ValueError: a number with thousands of digits
        raise TopologyError(f"{origin}: JSON that is nested too deeply or has huge numbers") from None
    return document
