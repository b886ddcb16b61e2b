"""What saving and restoring a training state costs, beside other ways to do it.

    python benchmarks/checkpoint.py [--size BYTES] [--repeats N] [--scenes train,read,bits] [--arms "tlaunch;..."]
                                    [--every N] [--folder PATH] [--json FILE]

``train``: one process trains a stack of linear layers under AdamW on one thread of the machine. In turn each arm saves
the state twice beside the training, before every fourth step (``--every``) unless one save is still going on; before
and after that some steps are made without. ``blocked`` is the time in the call that saves and what the optimizer has to
wait before its next step; throughput is compared with that of the undisturbed steps on both sides. Then each arm saves
once while nothing is trained, beside a plain write of as many bytes with ``fsync``.

``read``: a state that 2 ranks have saved under FSDP2 is restored on 1 and on 3, beside plain reads of the same bytes by
as many processes; once with nothing of it in the page cache, and once with all of it there.

``bits``: single bits are flipped in small checkpoints.

Every arm is measured ``--repeats`` times, in random order, so that a slow moment of the machine or its disk hits all
of them. DLRover does not sync what it has written. The peers live in an environment of their own: see ``peers.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from checkpoint_arms import ARMS
from measuring import SCRIPTS, Sample, cell, write_json
from peers import Missing, peers_bin

PEERS = ("DLRover", "NVRx")
SCENES = ("train", "read", "bits")
FLIPS = 200
DEADLINE = 900.0
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is made there
LEFT_BEHIND = "ckpt_shm_*"
"""DLRover's shared memory has names, and stays."""


class Failed(Exception):
    """A script has not come to its end."""


def run(python: Path, script: str, *arguments: object, world: int = 1) -> None:
    """Run a script on some ranks, and wait for all of them."""
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here.parent / ".src", here)))
    processes = []
    for rank in range(world):
        env = {**os.environ, "PYTHONPATH": paths, "RANK": str(rank), "WORLD_SIZE": str(world)}
        command = [str(python), str(SCRIPTS / script), *map(str, arguments)]
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        processes.append(
            (subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True), log)
        )
    try:
        for process, log in processes:
            if process.wait(DEADLINE):
                log.seek(0)
                raise Failed(f"{script}: exit code {process.returncode}: {log.read()[-2000:].decode(errors='replace')}")
    finally:
        for process, log in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()
            log.close()


def samples_of(path: Path) -> tuple[list[Sample], dict[str, str]]:
    """Read what a script has reported: samples, and who cannot take part and why."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    samples = [Sample(**line) for line in lines if "cannot" not in line]
    return samples, {line["who"]: line["cannot"] for line in lines if "cannot" in line}


def train(given: argparse.Namespace, folder: Path, missing: dict[str, str]) -> list[Sample]:
    """Measure saving."""
    python, arms = Path(sys.executable), list(given.arms)
    if any(arm in PEERS for arm in arms):
        try:
            python = peers_bin() / "python"
        except Missing as error:
            missing |= {arm: str(error) for arm in arms if arm in PEERS}
            arms = [arm for arm in arms if arm not in PEERS]
    before = set(SHARED_MEMORY.glob(LEFT_BEHIND))
    try:
        run(python, "train_and_save.py", folder, given.size, given.repeats, given.every, *arms)
    finally:
        for left in set(SHARED_MEMORY.glob(LEFT_BEHIND)) - before:
            left.unlink()
    samples, cannot = samples_of(folder / "report.jsonl")
    missing |= cannot
    return samples


def read(given: argparse.Namespace, folder: Path) -> list[Sample]:
    """Measure restoring."""
    python = Path(sys.executable)
    run(python, "read_checkpoints.py", "save", folder, given.size, 1, world=2)
    found: list[Sample] = []
    for world in (1, 3):
        run(python, "read_checkpoints.py", "load", folder, given.size, given.repeats, world=world)
        found += samples_of(folder / f"report-{world}.jsonl")[0]
    return found


def bits(folder: Path) -> list[Sample]:
    """Measure who finds flipped bits."""
    run(Path(sys.executable), "flip_bits.py", folder, FLIPS)
    return samples_of(folder / "report-bits.jsonl")[0]


def show(samples: Sequence[Sample], missing: dict[str, str], given: argparse.Namespace) -> None:
    """Print medians and ranges, a table for each scene."""
    by: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        by[sample.what][sample.who].append(sample)
    console = Console(width=max(140, Console().width))
    if "train" in given.scenes:
        size = by["state"][""][0].value
        title = f"saving {size:.2f} GB, median (range) of {given.repeats}, {os.cpu_count()} cores, one of them training"
        table = Table("", *given.arms, title=title)
        rows = ("first save blocks", "blocked", "throughput while saving", "durable write", "durable write / raw")
        for what in rows:
            table.add_row(what, *("cannot" if arm in missing else cell(by[what][arm]) for arm in given.arms))
        console.print(table)
        for what in ("step undisturbed", "raw write + fsync", "memory of the trainer"):
            console.print(f"{what}: {cell(by[what][''])}")
        for arm, why in missing.items():
            console.print(f"{arm} cannot: {why}")
    if "read" in given.scenes:
        ways = ("raw", "tlaunch", "dcp")
        table = Table("", *ways, title=f"restoring what 2 ranks have saved, {given.size / 1e9:.2f} GB in all")
        for what in sorted(name for name in by if " ranks, " in name):
            table.add_row(what, *(cell(by[what][way]) for way in ways))
        console.print(table)
    if "bits" in given.scenes:
        table = Table("", "found", "loaded, and wrong", title=f"of {FLIPS} flipped bits")
        for who in by["found"]:
            counts = (sum(int(s.value or 0) for s in by[what][who]) for what in ("found", "wrong"))
            table.add_row(who, *map(str, counts))
        console.print(table)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure what saving and restoring a training state costs.")
    parser.add_argument("--size", type=int, default=1_000_000_000, help="bytes of the state, 1 GB if not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scenes", default=",".join(SCENES), help="train, read, bits; separated by commas")
    parser.add_argument("--arms", default=";".join(ARMS), help="ways to save, separated by semicolons")
    parser.add_argument("--every", type=int, default=4, help="steps between two saves")
    parser.add_argument("--folder", type=Path, help="where to write; a new folder below it is used and removed")
    parser.add_argument("--json", type=Path, help="also write every single measurement to this file")
    given = parser.parse_args()
    given.scenes = [scene for scene in SCENES if scene in given.scenes.split(",")]
    given.arms = [arm for arm in ARMS if arm in given.arms.split(";")]
    if not given.scenes or not given.arms or given.repeats < 1 or given.every < 1:
        parser.error(f"nothing to measure; scenes: {', '.join(SCENES)}; arms: {'; '.join(ARMS)}")
    return given


def main() -> None:
    """Measure and print."""
    given = options()
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=given.folder or Path(__file__).parent))
    missing: dict[str, str] = {}
    samples: list[Sample] = []
    try:
        for scene in given.scenes:
            print(f"measuring: {scene}", file=sys.stderr, flush=True)
            place = folder / scene
            place.mkdir()
            if scene == "train":
                samples += train(given, place, missing)
            else:
                samples += read(given, place) if scene == "read" else bits(place)
            shutil.rmtree(place)
            if given.json:
                write_json(given.json, samples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(samples, missing, given)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    main()
