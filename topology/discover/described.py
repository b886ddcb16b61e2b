"""A topology file as a source: what the user says about nodes by their names."""

from __future__ import annotations

from tlaunch.topology.description import Template
from tlaunch.topology.discover.report import Coordinates, Report, fail
from tlaunch.topology.files import load


def report(path: str) -> Report:
    """Say what a topology file says.

    Raises:
        TopologyError: it cannot be read, or it names no nodes.
    """
    description = load(path)
    if isinstance(description.nodes, Template):
        fail(description.source, None, "nodes_per_rack", "describes nodes without their names; expected racks or nodes")
    nodes = {node.name: Coordinates(node.pod, node.rack, node.domain, node.gpus) for node in description.nodes}
    return Report("file", description.source, nodes)
