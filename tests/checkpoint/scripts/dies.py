"""Saves twice and is killed as soon as the second step is captured, while its saver is stopped."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

from tlaunch.checkpoint.checkpointer import Checkpointer

checkpointer = Checkpointer(sys.argv[1])
assert checkpointer.save(1, {"w": torch.full((1 << 20,), 1.0)}).result(60)
saver = checkpointer._home.pid  # type: ignore[union-attr]
os.kill(saver, signal.SIGSTOP)
checkpointer.save(2, {"w": torch.full((1 << 20,), 2.0)})
checkpointer.wait_captured()
while (order := checkpointer._saving._orders.get(2)) is None or order.link is None:
    time.sleep(0.001)
with checkpointer._saving._delivering:
    pass  # now the saver has been told
sys.stdout.write(f"{saver}\n")
sys.stdout.flush()
os.kill(saver, signal.SIGCONT)
os.kill(os.getpid(), signal.SIGKILL)
