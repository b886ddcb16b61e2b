"""Ranks that never talk to each other, so that one that is cut off goes on as if nothing had happened.

Usage: alone.py FOLDER, with ``trace-<rank>`` and ``finish`` as in steps.py.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

import steps  # type: ignore[import-not-found]  # beside this script, as users have their modules

folder = Path(sys.argv[1])
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
with (folder / f"trace-{rank}").open("a", buffering=1) as trace:
    for step in itertools.count(1):
        trace.write(json.dumps(steps.entry(step, rank, world)) + "\n")
        if (folder / "finish").exists():
            break
        time.sleep(0.01)
