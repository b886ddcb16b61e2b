"""``scontrol show topology``: the switches or blocks of the whole cluster."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping

from tlaunch.topology.discover.document import MAX_BYTES
from tlaunch.topology.discover.report import Coordinates, Report, checked_name, fail
from tlaunch.topology.discover.slurm import joined
from tlaunch.topology.nodelist import expand
from tlaunch.topology.yamltree import shown

COMMAND = ("scontrol", "show", "topology")
DEADLINE = 10.0
"""Seconds that Slurm's controller has to answer."""
_LABEL = " ".join(COMMAND)
_FIELD = re.compile(r"(\w+)=(\S*)")


def report(environ: Mapping[str, str] = os.environ, deadline: float = DEADLINE) -> Report | None:
    """Ask Slurm; ``None`` where there is no ``scontrol``. One that does not answer in time is a note.

    Raises:
        TopologyError: the answer makes no sense, or puts a node into two racks or blocks.
    """
    program = shutil.which(COMMAND[0], path=environ.get("PATH"))
    if program is None:
        return None
    try:
        code, out, err = _run([program, *COMMAND[1:]], {**environ, "LC_ALL": "C"}, deadline)
    except subprocess.TimeoutExpired:
        return Report("scontrol", _LABEL, notes=(f"no answer within {deadline:g} s",))
    except OSError as error:
        return Report("scontrol", _LABEL, notes=(f"cannot be run: {error.strerror}",))
    if code:
        said = err.decode(errors="replace").strip().splitlines()
        return Report("scontrol", _LABEL, notes=(f"exit code {code}: {said[0] if said else 'silent'}",))
    if len(out) > MAX_BYTES:
        fail(_LABEL, None, "output", f"larger than {MAX_BYTES >> 20} MiB")
    try:
        text = out.decode()
    except UnicodeDecodeError as error:
        fail(_LABEL, None, f"line {out.count(10, 0, error.start) + 1}", "not UTF-8; expected text")
    return parse(text)


def _run(command: list[str], environ: Mapping[str, str], deadline: float) -> tuple[int, bytes, bytes]:
    """Run a command to its end; returns exit code, output and errors.

    It has a process group of its own: a wrapper script that is killed for its time must not leave the program itself
    behind, which would keep the pipes open for ever.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=deadline)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out, err


def parse(text: str) -> Report:
    """Read the text: records of a tree (``SwitchName=``) or of blocks (``BlockName=``, ``AggregatedBlock=``).

    Of a tree, the switch next to a node is its rack and the one above its pod. A block is a rack and an NVLink domain,
    the smallest group of blocks around it the pod.

    Raises:
        TopologyError: it is something else, or a node is in two racks.
    """
    places = _Places()
    notes: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        fields = dict(_FIELD.findall(line))
        where = f"{_LABEL}: line {number}"
        nodes = expand(fields["Nodes"], where) if fields.get("Nodes") not in {None, "", "(null)"} else ()
        if "SwitchName" in fields:
            level = fields.get("Level", "")
            if not (level.isascii() and level.isdigit()):
                fail(where, None, "Level", f"expected a number, got {shown(level)}")
            places.switch(where, checked_name(where, None, "SwitchName", fields["SwitchName"]), int(level[:9]), nodes)
        elif "BlockName" in fields:
            places.block(where, checked_name(where, None, "BlockName", fields["BlockName"]), nodes)
        elif "AggregatedBlock" in fields:
            places.group(where, fields["AggregatedBlock"], nodes)
        elif _FIELD.match(line):
            notes[f"unknown level {shown(line.split('=')[0])}: it is left out"] = None
        else:
            said = "expected SwitchName=... or BlockName=..."
            fail(where, None, shown(line), said)
    return Report("scontrol", _LABEL, places.nodes(), notes=tuple(notes))


class _Places:
    """What the records say so far, by node."""

    def __init__(self) -> None:
        self._rack: dict[str, str] = {}
        self._blocks: set[str] = set()
        self._above: dict[str, list[str]] = {}
        self._groups: dict[str, tuple[int, str]] = {}

    def switch(self, where: str, name: str, level: int, nodes: tuple[str, ...]) -> None:
        if level == 0:
            self._put(where, "rack", name, nodes)
        elif level == 1:
            for node in nodes:
                self._above.setdefault(node, []).append(name)

    def block(self, where: str, name: str, nodes: tuple[str, ...]) -> None:
        self._blocks.add(name)
        self._put(where, "block", name, nodes)

    def group(self, where: str, names: str, nodes: tuple[str, ...]) -> None:
        name = checked_name(where, None, "AggregatedBlock", joined(expand(names, where)))
        for node in nodes:
            self._groups[node] = min(self._groups.get(node, (len(nodes), name)), (len(nodes), name))

    def nodes(self) -> dict[str, Coordinates]:
        return {node: self._coordinates(node) for node in {**self._rack, **self._above, **self._groups}}

    def _coordinates(self, node: str) -> Coordinates:
        rack = self._rack.get(node)
        domain = rack if rack in self._blocks else None
        if node in self._groups:
            return Coordinates(self._groups[node][1], rack, domain)
        above = joined(tuple(self._above.get(node, ())))
        return Coordinates(checked_name(_LABEL, node, "SwitchName", above) if above else None, rack, domain)

    def _put(self, where: str, kind: str, name: str, nodes: tuple[str, ...]) -> None:
        for node in nodes:
            before = self._rack.setdefault(node, name)
            if before != name:
                fail(where, node, kind, f"is {before} and {name}; expected every node in one {kind}")
