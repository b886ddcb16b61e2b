"""``poisoned.py FD``: a saver that dies of the first order to save."""

from __future__ import annotations

import os
import socket
import sys

from tlaunch.checkpoint.messages import receive, send

trainer, _ = socket.socket(fileno=int(sys.argv[1])).accept()
send(trainer, {"did": "greet"})
while (received := receive(trainer)) is not None and received[0].at("do").text() != "save":
    pass
os._exit(9)
