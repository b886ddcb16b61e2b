"""Asking every source, and merging what they say."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tlaunch.topology.discover import cloud, described, labels, nvml, scontrol, slurm
from tlaunch.topology.discover.document import read_text
from tlaunch.topology.discover.merge import Discovery, merge
from tlaunch.topology.discover.report import Coordinates, Report, checked_name, fail
from tlaunch.topology.model import Node
from tlaunch.topology.yamltree import shown

METADATA = "TLAUNCH_METADATA"
"""An environment variable with the paths of files: labels or JSON, separated by colons."""
NAMES = ("SLURMD_NODENAME", "NODE_NAME")
"""Environment variables with this node's name. In a Kubernetes pod the host's name is the pod's, so set NODE_NAME."""
ALIKE = 3
"""Contradictions of one kind that people are told of one by one."""
INSTANCE = Path("/sys/devices/virtual/dmi/id/board_asset_tag")
"""Where an AWS machine finds its instance id."""


def discover(
    environ: Mapping[str, str] = os.environ,
    *,
    topology: str | None = None,
    metadata: Iterable[Path] | None = None,
    alone: bool = False,
) -> Discovery:
    """Ask every source where nodes are.

    The nodes are those of the Slurm job that we are in; without one, this node and all that a source names. ``alone``:
    only this node, and Slurm's controller is left in peace where the environment says enough. ``topology``: a topology
    file. ``metadata``: files with labels or JSON; ``None`` for those of ``TLAUNCH_METADATA``.

    Raises:
        TopologyError: one line that names source, node and field.
    """
    own = own_name(environ)
    job = slurm.job_nodes(environ)
    reports = [] if topology is None else [described.report(topology)]
    reports.append(nvml.report(own, environ))
    said, instances = _metadata(own, environ, metadata)
    reports += said
    if (told := slurm.report(own, environ)) is not None:
        reports.append(told)
    if not (alone and (slurm.says_all(environ) or not job)) and (told := scontrol.report(environ)) is not None:
        reports.append(told)
    reports = [_renamed(report, instances, frozenset({own, *job})) for report in reports]
    named = {name for report in reports for name in report.nodes}
    nodes = (own,) if alone else job or (own, *named)
    found = merge(reports, nodes)
    return found if found.located else merge((*reports, _last_resort(nodes)), nodes)


def placed(node: Node, found: Discovery) -> Node:
    """Return a node that runs on this machine with the coordinates that ``discover(alone=True)`` has found for it.

    What nobody knows stays as it was, and so do its name and slots.
    """
    here = found.node(found.nodes[0])
    return replace(node, domain=here.domain or node.domain, rack=here.rack or node.rack, pod=here.pod or node.pod)


def remarks(found: Discovery) -> tuple[str, ...]:
    """Return everything that people should know, one line each: contradictions first.

    Of contradictions between the same two sources on one level there are at most ``ALIKE``, and how many more.
    """
    lines: list[str] = []
    alike: dict[tuple[str, str, str], list[str]] = {}
    for conflict in found.contradictions:
        alike.setdefault((conflict.level, conflict.source, conflict.other), []).append(str(conflict))
    for (level, source, other), same in alike.items():
        lines += same[:ALIKE]
        if len(same) > ALIKE:
            lines.append(f"and on {len(same) - ALIKE} more nodes {source} and {other} differ in the {level}")
    notes = (f"{report.source}: {note}" for report in found.reports for note in report.notes)
    return (*lines, *found.warnings, *notes)


def own_name(environ: Mapping[str, str]) -> str:
    """Return the name of this node: Slurm's, else Kubernetes', else the first part of the host's name.

    Raises:
        TopologyError: it cannot be a name.
    """
    for variable in NAMES:
        if environ.get(variable):
            return checked_name(variable, None, "name", environ[variable])
    return checked_name("hostname", None, "name", socket.gethostname().partition(".")[0])


def _metadata(
    own: str, environ: Mapping[str, str], paths: Iterable[Path] | None
) -> tuple[list[Report], Mapping[str, str]]:
    """Return what labels and clouds say, and the nodes that instances are."""
    reports: list[Report] = []
    instances: dict[str, str] = {}
    if environ.get(labels.VARIABLE):
        reports += labels.reports(labels.VARIABLE, {own: labels.parse_variable(environ[labels.VARIABLE])})
    if paths is None:
        paths = [Path(path) for path in environ.get(METADATA, "").split(":") if path]
    for path in paths:
        origin = str(path) if str(path).isprintable() else shown(str(path))
        text = read_text(path)
        if text.lstrip().startswith(("{", "[")):
            document = cloud.parse(origin, text, own)
            reports += document.reports
            instances |= document.instances
        else:
            reports += labels.reports(origin, {own: labels.parse_labels(origin, text)})
    if any(report.source == "aws" for report in reports) and (instance := _own_instance()) is not None:
        instances[instance] = own
    return reports, instances


def _own_instance() -> str | None:
    try:
        text = INSTANCE.read_text("ascii", "replace").strip()
    except OSError:
        return None
    return text if text.startswith("i-") else None


def _renamed(report: Report, instances: Mapping[str, str], known: frozenset[str]) -> Report:
    """Call nodes by the names that the job has for them: not by instance id, nor by name and domain."""
    shorts = Counter(name.partition(".")[0] for name in report.nodes)
    nodes: dict[str, Coordinates] = {}
    for name, coordinates in report.nodes.items():
        short = name.partition(".")[0]
        new = instances.get(name, name)
        if new not in known and short in known and shorts[short] == 1:
            new = short
        if nodes.setdefault(new, coordinates) != coordinates:
            fail(report.origin, new, "name", f"stands twice, once as {name}; expected every node once")
    return replace(report, nodes=nodes)


def _last_resort(nodes: Iterable[str]) -> Report:
    note = "no source says where nodes are: they are taken in alphabetical order, and which are neighbours is a guess"
    return Report("hostname", "names", dict.fromkeys(nodes, Coordinates()), notes=(note,))
