"""How long it takes to place, repair and shrink jobs of up to a million ranks, and how well they lie then.

    python benchmarks/placement.py [--repeats N] [--racks 14,139,1389,13889] [--json FILE]

The machine is made of NVL72 racks: 18 nodes of 4 GPUs, one NVLink domain each. The job has 16 pipeline stages of 8
tensor-parallel ranks in each replica, which is two racks, as many replicas as fit, and 8 spares in each rack. Each size
runs in a process of its own, each repeat on a machine that has not been looked at before, and memory is the most that
the process ever had. Printed are medians and the range.

``replace``: 100 ranks fail at the same moment, anywhere, and find spares in their rack. ``shrink``: they fail when
there are no spares. Then the edges that leave a rack, beside the least that is possible and the orders of other
launchers.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from measuring import Sample, cell, write_json
from tlaunch.topology.locality import Locality, least, locality
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node
from tlaunch.topology.orders import arrival, host_names, shuffled, slurm_blocks
from tlaunch.topology.placement import place
from tlaunch.topology.replacement import replace
from tlaunch.topology.shrinking import shrink
from tlaunch.topology.spares import SpareRequest

T = TypeVar("T")

NODES, GPUS, SPARES = 18, 4, 8
FAILURES = 100
EDGES_OF = 1389  # racks: 100,008 slots


def machine_of(racks: int) -> Machine:
    """Return racks of NVL72; the nodes are numbered as tlaunch numbers them, which is not in alphabetical order."""
    return Machine(
        tuple(
            Node(f"node-{index:02d}", GPUS, f"rack-{index // NODES:02d}", f"rack-{index // NODES:02d}")
            for index in range(racks * NODES)
        )
    )


def mesh_of(racks: int) -> Mesh:
    """Return a job of two racks for each replica."""
    return Mesh.parse(f"dp={racks // 2},pp=16,tp=8")


def timed(work: Callable[..., T], *args: Any, **options: Any) -> tuple[float, T]:  # noqa: ANN401  handed on
    """Return (seconds, what came out)."""
    start = time.perf_counter()
    result = work(*args, **options)
    return time.perf_counter() - start, result


def measure(racks: int, repeats: int) -> Iterable[Sample]:
    """Measure one size in this process."""
    mesh, who = mesh_of(racks), str(racks * NODES * GPUS)
    for turn in range(repeats):
        machine = machine_of(racks)
        seconds, placement = timed(place, machine, mesh, SpareRequest(SPARES, per="rack"))
        yield Sample("place", who, seconds, "s")
        if not turn:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            yield Sample("memory", who, most, "MB")
        failed = sorted(Random(turn).sample(range(mesh.size), min(FAILURES, mesh.size)))
        lost = {rank: placement.seats[rank] for rank in failed}
        spares, seats = placement.spares, placement.seats
        seconds, repaired = timed(replace, machine, lost, spares, "rack", mesh=mesh, seats=seats)
        yield Sample("replace", who, seconds * 1000, "ms")
        yield Sample("replaced", who, len(repaired.moves), "")
        seconds, _ = timed(shrink, mesh, seats, failed, machine=machine, within="rack")
        yield Sample("shrink", who, seconds * 1000, "ms")


def in_a_process(racks: int, repeats: int) -> list[Sample]:
    """Measure one size in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(racks), "--repeats", str(repeats)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    )
    return [Sample(*sample) for sample in json.loads(done.stdout)]


def orders(racks: int) -> dict[str, Locality]:
    """Judge the placement and the orders of other launchers, which see neither racks nor spares as we do."""
    machine, mesh = machine_of(racks), mesh_of(racks)
    slots = range(len(machine.slots))
    found = {"tlaunch": locality(machine, mesh, place(machine, mesh, SpareRequest(SPARES, per="rack")).seats)}
    others: dict[str, Sequence[int]] = {
        f"Slurm's block order, --segment={NODES - SPARES // GPUS}": slurm_blocks(
            machine, slots, NODES - SPARES // GPUS
        ),
        "Slurm's block order": slurm_blocks(machine, slots),
        "host names in alphabetical order": host_names(machine, slots),
        "order of arrival": arrival(machine, slots),
        "random order": shuffled(machine, slots),
    }
    return found | {name: locality(machine, mesh, order[: mesh.size]) for name, order in others.items()}


def show_times(console: Console, samples: Sequence[Sample]) -> None:
    """Print what was measured, a row for each size."""
    table = Table(title="Placement, replacement of 100 failures, shrinking")
    for name in ("slots", "place", "for each slot", "memory", "replace 100", "shrink by 100"):
        table.add_column(name, justify="right")
    for who in dict.fromkeys(sample.who for sample in samples):
        rows = {what: [s for s in samples if (s.what, s.who) == (what, who)] for what in ("place", "memory")}
        rows |= {what: [s for s in samples if (s.what, s.who) == (what, who)] for what in ("replace", "shrink")}
        each = [Sample("", who, (s.value or 0) * 1e6 / int(who), "us") for s in rows["place"]]
        cells = [cell(rows["place"]), cell(each), *(cell(rows[what]) for what in ("memory", "replace", "shrink"))]
        table.add_row(f"{int(who):,}", *cells)
    console.print(table)


def show_edges(console: Console, racks: int) -> list[Sample]:
    """Print how many ring edges leave a rack under each order; returns the numbers."""
    mesh = mesh_of(racks)
    bound = least(mesh, NODES * GPUS - SPARES, racks)
    table = Table(title=f"Ring edges that leave a rack, {racks} racks, mesh {mesh}, and the locality score")
    table.add_column("order")
    for name, size in mesh.dims:
        table.add_column(f"{name}={size}", justify="right")
    table.add_column("score", justify="right")
    table.add_row("lower bound", *(f"{bound[name][0]:,}" for name, _ in mesh.dims), "")
    samples = [Sample(f"edges of {name}", "lower bound", bound[name][0], "") for name, _ in mesh.dims]
    for who, found in orders(racks).items():
        table.add_row(who, *(f"{dim.ring.leaving['rack']:,}" for dim in found.dims), f"{found.score:.1f}")
        samples += [Sample(f"edges of {dim.name}", who, dim.ring.leaving["rack"], "") for dim in found.dims]
        samples.append(Sample("score", who, found.score, ""))
    console.print(table)
    return samples


def main() -> None:
    """Measure every size, then count edges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="how often each size is measured")
    parser.add_argument("--racks", default="14,139,1389,13889", help="sizes, in racks of 72 slots")
    parser.add_argument("--json", type=Path, help="where to write every single measurement")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(list(measure(given.one, given.repeats))))
        return
    console = Console()
    samples = [sample for racks in given.racks.split(",") for sample in in_a_process(int(racks), given.repeats)]
    show_times(console, samples)
    samples += show_edges(console, EDGES_OF)
    if given.json:
        write_json(given.json, samples)


if __name__ == "__main__":
    main()
