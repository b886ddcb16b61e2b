"""What Slurm tells a job in its environment: where this node is, which nodes the job has, which GPUs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from tlaunch.topology.discover.report import Coordinates, Report, checked_name, fail
from tlaunch.topology.model import MAX_GPUS
from tlaunch.topology.nodelist import expand
from tlaunch.topology.yamltree import shown

ADDRESS = "SLURM_TOPOLOGY_ADDR"
PATTERN = "SLURM_TOPOLOGY_ADDR_PATTERN"
GPUS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
LONGEST = 64
"""Of the name of several switches."""
_LEVELS = ("switch", "block", "node")


def job_nodes(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the nodes of the Slurm job that we are in, in Slurm's order; none outside of a job.

    Raises:
        TopologyError: the variable is no node list.
    """
    for variable in ("SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if environ.get(variable):
            return tuple(dict.fromkeys(expand(environ[variable], variable)))
    return ()


def report(node: str, environ: Mapping[str, str]) -> Report | None:
    """Say what Slurm's variables tell of this node; ``None`` outside of Slurm.

    A tree of any depth: the switch next to the node is its rack, the one above it the pod. A block is one rack and, as
    on NVL72, one NVLink domain.

    Raises:
        TopologyError: a variable is malformed, or one of the two that belong together is missing.
    """
    count = _gpu_count(environ)
    named, coordinates, notes = _address(environ)
    if named is None and count is None:
        return None
    nodes = {} if named is None else {named: coordinates}
    if count is not None:
        known = nodes.get(node, Coordinates())
        nodes[node] = Coordinates(known.pod, known.rack, known.domain, count)
    return Report("slurm", "environment", nodes, notes=notes)


def says_all(environ: Mapping[str, str]) -> bool:
    """Tell whether Slurm has put all that it knows of this node into the environment: scontrol has no more."""
    return bool(environ.get(PATTERN))


def _address(environ: Mapping[str, str]) -> tuple[str | None, Coordinates, tuple[str, ...]]:
    """Return the node that the address is of, where it stands, and notes."""
    address, pattern = environ.get(ADDRESS), environ.get(PATTERN)
    if not address and not pattern:
        return None, Coordinates(), ()
    if not address or not pattern:
        missing, there = (ADDRESS, PATTERN) if pattern else (PATTERN, ADDRESS)
        fail("slurm", None, missing, f"is not set beside {there}; expected both")
    kinds = pattern.split(".")
    # The names of nodes may have dots, an address for example. Those of switches and blocks have none.
    parts = address.split(".", len(kinds) - 1)
    if len(parts) != len(kinds) or kinds[-1] != "node":
        fail("slurm", None, ADDRESS, f"{shown(address)} does not fit {PATTERN}={shown(pattern)}")
    node = checked_name("slurm", None, ADDRESS, parts[-1])
    unknown = [kind for kind in kinds[:-1] if kind not in _LEVELS]
    if unknown:
        note = f"{PATTERN}: unknown level {shown(unknown[0])}, expected {', '.join(_LEVELS)}: the address is left out"
        return node, Coordinates(), (note,)
    above = [(kind, _place(node, part)) for kind, part in zip(kinds[:-1], parts[:-1], strict=True)]
    switches = [name for kind, name in above if kind == "switch"]
    blocks = [name for kind, name in above if kind == "block"]
    if blocks:
        wider = [*switches, *blocks[:-1]]
        return node, Coordinates(wider[-1] if wider else None, blocks[-1], blocks[-1]), ()
    rack, pod = (switches[-1] if switches else None), (switches[-2] if len(switches) > 1 else None)
    return node, Coordinates(pod, rack), ()


def _place(node: str, part: str) -> str:
    """Return the name of one level: several switches, ``s[1-2]``, become one name."""
    return checked_name("slurm", node, ADDRESS, joined(expand(part, ADDRESS)))


def joined(names: tuple[str, ...]) -> str:
    """Write the switches that a node is below at one level as one name; of many, one and what tells them apart."""
    whole = "-".join(sorted(names))
    if len(whole) <= LONGEST:
        return whole
    return f"{min(names)[:LONGEST]}-{len(names)}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def _gpu_count(environ: Mapping[str, str]) -> int | None:
    """Return how many GPUs of this node the step has, else the job."""
    for variable in GPUS:
        if environ.get(variable):
            return len(gpu_numbers(variable, environ[variable]))
    text = environ.get("SLURM_GPUS_ON_NODE", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 5 and int(text) <= MAX_GPUS):
        fail("slurm", None, "SLURM_GPUS_ON_NODE", f"expected a number of GPUs, got {shown(text)}")
    return int(text) or None


def gpu_numbers(variable: str, text: str) -> tuple[int, ...]:
    """Read ``0,1,4-7``, the GPUs of the node that Slurm has given out, in its order.

    Raises:
        TopologyError: it is something else, or a GPU stands twice.
    """
    words = expand(f"g[{text}]", variable) if text.replace(",", "").replace("-", "").isdigit() else ()
    numbers = tuple(int(word[1:]) for word in words)
    if not numbers or len(set(numbers)) < len(numbers) or max(numbers) >= MAX_GPUS:
        fail("slurm", None, variable, f"expected GPUs such as 0,1,2,3, each once, got {shown(text)}")
    return numbers
