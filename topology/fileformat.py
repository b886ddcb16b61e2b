"""From the YAML of a topology file to nodes. ``files`` describes the format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from tlaunch.topology.description import (
    MAX_NODES,
    DescribedNode,
    DomainPer,
    Template,
    domain_of,
)
from tlaunch.topology.model import MAX_GPUS
from tlaunch.topology.nodelist import expand_or
from tlaunch.topology.yamltree import Value, is_name, shown

_FORMS = ("nodes_per_rack", "racks", "nodes")
_NODES = "NAME, NAME-[00-17], or a list of these"


def nodes_of(top: Value) -> tuple[DescribedNode, ...] | Template:
    """Read the whole file: its nodes in physical order, or a template for any number of them."""
    what = f"a mapping with one of {', '.join(_FORMS)}"
    keys = top.members(what, ("gpus", "domain_per", "racks_per_pod", *_FORMS))
    forms = [name for name in _FORMS if name in keys]
    if not forms:
        top.fail(f"expected {what}")
    if len(forms) > 1:
        keys[forms[1]].fail(f"stands beside {forms[0]!r}; expected only one of {', '.join(_FORMS)}")
    defaults = _Defaults().override(keys)
    if "racks_per_pod" in keys and forms != ["nodes_per_rack"]:
        keys["racks_per_pod"].fail("expected only beside nodes_per_rack; racks that are listed have a pod each")
    if forms == ["nodes_per_rack"]:
        pods = keys["racks_per_pod"].number(1, MAX_NODES) if "racks_per_pod" in keys else None
        return Template(keys["nodes_per_rack"].number(1, MAX_NODES), defaults.gpus, defaults.domain_per, pods)
    found = _Nodes()
    if forms == ["racks"]:
        for name, rack in _named(keys["racks"], "racks by name"):
            _read_rack(name, rack, defaults, found)
    else:
        _read_nodes(keys["nodes"], defaults, found)
    return found.in_order()


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What an outer level says for all the nodes below it."""

    gpus: int | None = None
    domain_per: DomainPer | None = None
    rack: str | None = None
    pod: str | None = None

    def override(self, keys: Mapping[str, Value], rack: str | None = None) -> _Defaults:
        gpus = keys["gpus"].number(1, MAX_GPUS) if "gpus" in keys else self.gpus
        per = (
            cast("DomainPer", keys["domain_per"].choice(("rack", "node"))) if "domain_per" in keys else self.domain_per
        )
        pod = keys["pod"].name("the name of a pod") if "pod" in keys else self.pod
        return _Defaults(gpus, per, rack or self.rack, pod)

    def node(self, name: str, domain: str | None = None) -> DescribedNode:
        return DescribedNode(
            name, self.gpus, domain or domain_of(self.domain_per, name, self.rack), self.rack, self.pod
        )


@dataclass(slots=True)
class _Nodes:
    """The nodes found so far, and what makes a tree of them: each domain is in one rack, each rack in one pod."""

    found: dict[str, tuple[DescribedNode, int]] = field(default_factory=dict)
    parents: dict[tuple[str, str], tuple[str | None, int]] = field(default_factory=dict)

    def add(self, node: DescribedNode, at: Value) -> None:
        if node.name in self.found:
            other, line = self.found[node.name]
            where = f"is already in rack {other.rack}" if other.rack != node.rack and other.rack else "stands twice"
            at.fail(f"{node.name} {where} (line {line}); expected every node once")
        if len(self.found) == MAX_NODES:
            at.fail(f"more than {MAX_NODES} nodes; expected fewer")
        self.found[node.name] = node, at.line
        self._check_parent(("domain", node.domain), ("rack", node.rack), at)
        self._check_parent(("rack", node.rack), ("pod", node.pod), at)

    def _check_parent(self, child: tuple[str, str | None], parent: tuple[str, str | None], at: Value) -> None:
        kind, name = child
        if name is None:
            return
        level, here = parent
        before, line = self.parents.setdefault((kind, name), (here, at.line))
        if before != here:
            first, second = (f"in {level} {value}" if value else f"in no {level}" for value in (before, here))
            at.fail(f"{kind} {name} is {first} (line {line}) and {second}; expected every {kind} in one {level}")

    def in_order(self) -> tuple[DescribedNode, ...]:
        """Return the nodes pod by pod, rack by rack and domain by domain, each in order of first appearance."""
        nodes = [node for node, _ in self.found.values()]
        first: dict[tuple[str, str | None], int] = {}
        for index, node in enumerate(nodes):
            for key in (("pod", node.pod), ("rack", node.rack), ("domain", node.domain)):
                first.setdefault(key, index)
        return tuple(
            sorted(
                nodes, key=lambda node: (first["pod", node.pod], first["rack", node.rack], first["domain", node.domain])
            )
        )


def _named(value: Value, what: str) -> list[tuple[str, Value]]:
    members = value.mapping(what)
    if not members:
        value.fail(f"empty; expected {what}")
    for name, member in members.items():
        if not is_name(name):
            member.fail(f"{shown(name)} cannot be a name; expected letters, digits, '.', '_' and '-'")
    return list(members.items())


def _read_rack(name: str, rack: Value, defaults: _Defaults, found: _Nodes) -> None:
    if not rack.is_mapping:
        _add(rack, defaults.override({}, name), found)
        return
    keys = rack.members("nodes", ("nodes", "domains", "gpus", "domain_per", "pod"))
    inside = defaults.override(keys, name)
    if ("nodes" in keys) == ("domains" in keys):
        rack.fail("expected nodes or domains, " + ("not both" if "nodes" in keys else "got neither"))
    if "nodes" in keys:
        _add(keys["nodes"], inside, found)
        return
    if "domain_per" in keys:
        keys["domain_per"].fail("expected only without domains")
    for label, domain in _named(keys["domains"], "NVLink domains by name"):
        _read_domain(label, domain, inside, found)


def _read_domain(name: str, domain: Value, defaults: _Defaults, found: _Nodes) -> None:
    if not domain.is_mapping:
        _add(domain, defaults, found, name)
        return
    keys = domain.members("nodes", ("nodes", "gpus"))
    if "nodes" not in keys:
        domain.fail(f"no nodes; expected nodes: {_NODES}")
    _add(keys["nodes"], defaults.override(keys), found, name)


def _read_nodes(nodes: Value, defaults: _Defaults, found: _Nodes) -> None:
    if not nodes.is_mapping:
        _add(nodes, defaults, found)
        return
    members = nodes.mapping("nodes by name")
    if not members:
        nodes.fail(f"no nodes; expected {_NODES}")
    for pattern, node in members.items():
        # `node-00:` alone is a node of which nothing else is known.
        keys = node.members("a mapping", ("gpus", "domain", "rack", "pod")) if node.kind != "nothing" else {}
        rack = keys["rack"].name("the name of a rack") if "rack" in keys else None
        domain = keys["domain"].name("the name of an NVLink domain") if "domain" in keys else None
        own = defaults.override(keys, rack)
        for name in expand_or(pattern, node.fail):
            found.add(own.node(name, domain), node)


def _add(nodes: Value, defaults: _Defaults, found: _Nodes, domain: str | None = None) -> None:
    """Read a pattern or a list of patterns."""
    patterns = nodes.items()
    if patterns == [] or nodes.kind == "nothing":
        nodes.fail(f"no nodes; expected {_NODES}")
    for pattern in [nodes] if patterns is None else patterns:
        for name in expand_or(pattern.text(_NODES), pattern.fail):
            found.add(defaults.node(name, domain), pattern)
