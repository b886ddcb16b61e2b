"""Topology files: a description of the machine in YAML. The only I/O of the topology apart from ``discover``.

A file has one of three forms. Racks that are all alike, as many as the job asks for::

    gpus: 4                  # GPUs of each node; without it the job says
    nodes_per_rack: 18
    domain_per: rack         # one NVLink domain for each rack, or for each node
    racks_per_pod: 8         # optional

Racks with the names that nodes really have; ``gpus`` and ``domain_per`` may also stand at a rack or a domain::

    gpus: 4
    racks:
      rack-a: gb-[001-018]   # short for {nodes: gb-[001-018]}
      rack-b:
        pod: north
        domains:
          left: gb-[101-109]
          right:
            - gb-[110-117]
            - gb-200

Patterns are those of Slurm: ``gb[01-18,20],x7`` and ``r[1-2]n[01-18]`` too. Nodes one by one, each with coordinates::

    nodes:
      alpha: {gpus: 8, domain: nvl-1, rack: r1, pod: p1}
      beta-[0-3]: {gpus: 4, rack: r2}
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tlaunch.topology.description import Description, default_machine
from tlaunch.topology.fileformat import nodes_of
from tlaunch.topology.model import TopologyError
from tlaunch.topology.synthetic import PREFIX, described
from tlaunch.topology.yamltree import MAX_BYTES, nearest, parse, shown

__all__ = ["Description", "default_machine", "load", "shipped"]


def shipped() -> tuple[str, ...]:
    """Return the names of the topologies that come with tlaunch."""
    files = (entry.name for entry in resources.files("tlaunch.conf").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")))


def load(source: str) -> Description:
    """Read a topology file. ``source`` is a path, the name of a shipped one such as ``nvl72``, or ``synthetic:...``.

    Raises ``TopologyError`` with one line that names the file, the place in it and what was expected.
    """
    if source.startswith(PREFIX):
        return described(source)
    names = shipped()
    if source in names:
        label, data = f"{source}.yaml", resources.files("tlaunch.conf").joinpath(f"{source}.yaml").read_bytes()
    else:
        label, data = source if source.isprintable() else shown(source), _read(source, names)
    return Description(label, nodes_of(parse(label, data)))


def _read(source: str, names: tuple[str, ...]) -> bytes:
    hint = nearest(source, names) if "/" not in source else f"expected a file or one of {', '.join(names)}"
    missing = TopologyError(f"{shown(source)} is neither a file nor a shipped topology; {hint}")
    if not source:
        raise missing
    try:
        with Path(source).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (FileNotFoundError, ValueError):  # ValueError: a null character in the path
        raise missing from None
    except OSError as error:
        raise TopologyError(f"{shown(source)}: {error.strerror}; expected a topology file that can be read") from None
