"""A torchrun-style script that saves each step, as far as it is told to.

Usage: saves.py FOLDER

FOLDER/until                 the last step that may be made; FOLDER/finish: come to the end
FOLDER/die-<step>-<rank>     be killed before this step is captured, once; wait for the file that is named there
FOLDER/hold                  while it is there, ranks that are started again wait before they make a checkpointer

FOLDER/making-<rank>-<restart>   its pid and its slot, once it makes a checkpointer
FOLDER/start-<rank>-<restart>    the step that was restored
FOLDER/captured-<step>-<rank>    once that is so, and the saver has been told
FOLDER/saved-<step>-<rank>       the result
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist

from tlaunch.checkpoint import Checkpointer

FOLDER = Path(sys.argv[1])


def tell(name: str, text: object = "yes") -> None:
    draft = FOLDER / f"{name}.draft"
    draft.write_text(str(text))
    draft.rename(FOLDER / name)


def may_go_on(step: int) -> bool:
    """Wait until a step may be made; false when it is time to end."""
    while not (FOLDER / "finish").exists():
        until = FOLDER / "until"
        if until.exists() and int(until.read_text()) >= step:
            return True
        time.sleep(0.01)
    return False


def until_told(checkpointer: Checkpointer, step: int, future: Future[bool]) -> None:
    """Wait until the saver has been told of a step."""
    while not future.done():
        order = checkpointer._saving._orders.get(step)
        if order is not None and order.link is not None:
            break
        time.sleep(0.001)
    with checkpointer._saving._delivering:
        pass


def tell_result(name: str, done: Future[bool]) -> None:
    tell(name, done.exception() or done.result())


def main() -> None:
    dist.init_process_group("gloo")
    rank, restart = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"]
    while restart != "0" and (FOLDER / "hold").exists():
        time.sleep(0.01)
    tell(f"making-{rank}-{restart}", f"{os.getpid()} {os.environ['TLAUNCH_SLOT']}")
    state = {"w": torch.zeros(64)}
    with Checkpointer(FOLDER / "ck") as checkpointer:
        start = checkpointer.restore(state) or 0
        assert (state["w"] == start).all()
        tell(f"start-{rank}-{restart}", start)
        for step in itertools.count(start + 1):
            if not may_go_on(step):
                break
            deadly = FOLDER / f"die-{step}-{rank}"
            if deadly.exists():
                while not Path(deadly.read_text()).exists():
                    time.sleep(0.01)
                deadly.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            state["w"].fill_(step)
            future = checkpointer.save(step, state)
            checkpointer.wait_captured()
            until_told(checkpointer, step, future)
            tell(f"captured-{step}-{rank}")
            future.add_done_callback(functools.partial(tell_result, f"saved-{step}-{rank}"))
    dist.destroy_process_group()


main()
