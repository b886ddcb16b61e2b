"""Saves twice and is killed as soon as the second step is captured, while its saver is stopped."""

from __future__ import annotations

import os
import signal
import sys

import torch

from tlaunch.checkpoint.checkpointer import Checkpointer

checkpointer = Checkpointer(sys.argv[1])
assert checkpointer.save(1, {"w": torch.full((1 << 20,), 1.0)}).result(60)
saver = checkpointer._home.pid  # type: ignore[union-attr]
os.kill(saver, signal.SIGSTOP)
checkpointer.save(2, {"w": torch.full((1 << 20,), 2.0)})
checkpointer.wait_captured()
sys.stdout.write(f"{saver}\n")
sys.stdout.flush()
os.kill(saver, signal.SIGCONT)
os.kill(os.getpid(), signal.SIGKILL)
