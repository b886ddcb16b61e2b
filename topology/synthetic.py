"""Machines made up from a few numbers: ``synthetic:racks=18,nodes=18,gpus=4``."""

from __future__ import annotations

from math import prod

from tlaunch.topology.description import MAX_NODES, DescribedNode, Description
from tlaunch.topology.model import MAX_GPUS, TopologyError

PREFIX = "synthetic:"
_LEVELS = ("pods", "racks", "domains", "nodes", "gpus")
_EXAMPLE = f"{PREFIX}racks=18,nodes=18,gpus=4"


def described(source: str) -> Description:
    """Read ``synthetic:NAME=NUMBER,...`` with any of pods, racks, domains, nodes and gpus; each is 1 by default.

    Each number counts what is inside one of the next wider level that is named: ``racks=2,domains=4,nodes=1,gpus=8``
    are 2 racks with 4 NVLink domains each, of one node. Without domains each rack is one; without pods there are none.
    """
    given = _numbers(source)
    pods, racks, domains, nodes = (given.get(level, 1) for level in _LEVELS[:-1])
    total = pods * racks * domains * nodes
    if total > MAX_NODES:
        raise TopologyError(f"{source[:80]!r}: that is {total} nodes; expected at most {MAX_NODES}")
    found: list[DescribedNode] = []
    for index in range(total):
        domain, rack, pod = (index // prod(sizes) for sizes in ((nodes,), (nodes, domains), (nodes, domains, racks)))
        in_rack = f"rack-{rack:02d}"
        in_domain = f"domain-{domain:02d}" if "domains" in given else in_rack
        in_pod = f"pod-{pod:02d}" if "pods" in given else None
        found.append(DescribedNode(f"node-{index:02d}", given.get("gpus"), in_domain, in_rack, in_pod))
    return Description(source, tuple(found))


def _numbers(source: str) -> dict[str, int]:
    given: dict[str, int] = {}
    for part in source.removeprefix(PREFIX).split(","):
        name, _, text = (piece.strip() for piece in part.partition("="))
        if name not in _LEVELS:
            raise TopologyError(
                f"{source[:80]!r}: {part[:40]!r} is none of {', '.join(_LEVELS)}; expected for example {_EXAMPLE}"
            )
        if name in given:
            raise TopologyError(f"{source[:80]!r}: {name} stands twice; expected for example {_EXAMPLE}")
        most = MAX_GPUS if name == "gpus" else MAX_NODES
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        if not 1 <= number <= most:
            raise TopologyError(f"{source[:80]!r}: {name}: expected a whole number from 1 to {most}, got {text[:20]!r}")
        given[name] = number
    return given
