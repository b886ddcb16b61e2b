"""Train a small GPT on 64 ranks while a rank, a GPU and a node are killed under it: ``python examples/demo``.

18 nodes with 4 GPUs each stand on this machine, as one NVL72 rack; every rank is a real process that trains on a CPU
slot. The demo uses nothing but the ``tlaunch`` command and the files that it writes. It ends with a table of what
happened, ``demo/report.json`` and the loss curve ``demo/loss.png``. Its exit code is 0 if the job survived everything.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from plot import draw
from report import make_report
from scene import Scene, play
from table import show


def main() -> int:
    """Run the demo and return its exit code."""
    options = _parse()
    signal.signal(signal.SIGTERM, _terminate)
    scene = Scene(options.nodes, options.spares, options.steps, options.deadline)
    job_id = f"demo-{secrets.token_hex(3)}"
    folder: Path = options.out / job_id
    folder.mkdir(parents=True)
    try:
        records, failures, outcome = play(scene, job_id, folder)
    except KeyboardInterrupt:  # by then the job has been ended
        return 130
    report = make_report(
        records,
        failures,
        outcome,
        planned=len(scene.acts),
        steps=scene.steps,
        world_size=scene.world_size,
    )
    (options.out / "report.json").write_text(json.dumps({"job": job_id, **report.as_json()}, indent=2) + "\n")
    title = f"A small GPT on {scene.world_size} ranks, with {len(failures)} failures on the way"
    draw(options.out / "loss.png", records, report.recoveries, outcome.started, title)
    show(report)
    print(f"demo: see {options.out / 'loss.png'} and {options.out / 'report.json'}; the logs are in {folder}")
    return 1 if report.problems else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description="Train a small GPT while its hardware fails.")
    parser.add_argument("--nodes", type=int, default=18, help="of 4 GPUs each (default: %(default)s)")
    parser.add_argument("--spares", type=int, default=8, help="GPUs kept spare; 5 are used up (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=70, help="(default: %(default)s)")
    parser.add_argument("--deadline", type=float, default=235.0, help="for the job, in seconds (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="a folder (default: %(default)s)")
    return parser.parse_args()


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    """Leave by the way that ends the job first."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
