"""Forks ranks that run a script: ``fork.py SCRIPT FOLDER WORLD:ARGUMENTS...``, one run after the other."""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import traceback
from pathlib import Path

SLOW = ("torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor")
"""What takes seconds to import, and each rank needs: once, before any is forked."""


def run(script: str, rank: int, arguments: list[str]) -> int:
    """Be one rank."""
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except BaseException:  # noqa: BLE001 - this is the end of the process
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Run all, and end with 1 as soon as a rank has not ended well."""
    for name in SLOW:
        importlib.import_module(name)
    script, folder, *plan = sys.argv[1:]
    for number, entry in enumerate(plan):
        world, _, arguments = entry.partition(":")
        os.environ["WORLD_SIZE"] = world
        os.environ["MEETING"] = Path(folder, f"meeting-{number}").as_uri()
        children = []
        for rank in range(int(world)):
            pid = os.fork()
            if pid == 0:
                code = run(script, rank, arguments.split())
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        if any(codes):
            sys.exit(f"run {number}: the ranks ended with {codes}")


main()
