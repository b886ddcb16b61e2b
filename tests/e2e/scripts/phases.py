"""steps.py with places where a rank waits to be killed, so that a failure can be had in a phase of a start.

Usage: phases.py FOLDER

FOLDER/pause         JSON {"rank": r, "restarts": n, "phase": p}: that rank waits there when the job has been started
                     again n times. The phases: "start", before the process group; "first", after it, before the first
                     step; "step", between two steps
FOLDER/paused        says that it does
FOLDER/began-<rank>  JSON {"pid": p, "restarts": n} of a rank that has not been in "start" yet
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import steps  # type: ignore[import-not-found]  # beside this script, as users have their modules
import torch.distributed as dist

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])
RESTARTS = int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def write(name: str, **content: object) -> None:
    draft = FOLDER / f"{name}.draft-{RANK}"
    draft.write_text(json.dumps(content))
    draft.replace(FOLDER / name)


def pause(phase: str) -> None:
    try:
        wanted = json.loads((FOLDER / "pause").read_text())
    except FileNotFoundError:
        return
    if wanted == {"rank": RANK, "restarts": RESTARTS, "phase": phase}:
        write("paused")
        time.sleep(600)


def trouble(_folder: Path, _rank: int) -> None:
    pause("step")


write(f"began-{RANK}", pid=os.getpid(), restarts=RESTARTS)
pause("start")
meet = dist.init_process_group


def init_process_group(backend: str, timeout: timedelta) -> None:
    meet(backend, timeout=timeout)
    pause("first")


dist.init_process_group = init_process_group  # type: ignore[assignment]
steps.trouble = trouble
steps.main()
