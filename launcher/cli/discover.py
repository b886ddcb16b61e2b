"""``tlaunch topology discover``: what each source says about where nodes are, and what wins."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tlaunch.launcher.cli.flags import flag, switch


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverOptions:
    """``tlaunch topology discover``."""

    topology: str | None = flag("--topology", "FILE", "A topology file, which wins over everything else.")
    metadata: str | None = flag(
        "--metadata", "FILE,...", "Labels or JSON of Kubernetes or a cloud (default: those of TLAUNCH_METADATA)."
    )
    json: bool = switch("--json", "Print one JSON object.")


def discover(given: DiscoverOptions) -> int:
    """Show it. Raises ``InputError`` when a source makes no sense."""
    from tlaunch.topology.discover import gather, shown

    metadata = None if given.metadata is None else [Path(name) for name in given.metadata.split(",") if name]
    found = gather.discover(topology=given.topology, metadata=metadata)
    if given.json:
        import json

        sys.stdout.write(json.dumps(shown.document(found), indent=2, ensure_ascii=False) + "\n")
    else:
        from rich.console import Console

        Console(highlight=False).print(shown.show(found))
    return 0
