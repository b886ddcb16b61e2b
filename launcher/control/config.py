"""An agent's own command line. What it runs is named there and nowhere else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tlaunch.topology.model import Node


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One agent.

    ``discover``: it finds out where its node is before it registers; what nobody knows is as ``node`` says. ``host``:
    the address that other nodes reach this one by. ``zygote``: the socket of one that serves several agents, or
    ``None`` to start an own one. ``lifeline``: the read end of the starter's lifeline. The store's endpoints come from
    the environment (``TLAUNCH_ETCD...``).
    """

    job: str
    node: Node
    discover: bool
    host: str
    log_dir: Path
    zygote: str | None
    start: Literal["fork", "fresh"]
    policy: str | None
    lifeline: int | None
    module: bool
    argv: tuple[str, ...]

    def command(self) -> list[str]:
        """Return the arguments that :meth:`parse` reads back."""
        pairs = {
            "--job": self.job,
            "--node": self.node.name,
            "--slots": str(self.node.slots),
            "--domain": self.node.domain,
            "--rack": self.node.rack,
            "--pod": self.node.pod,
            "--host": self.host,
            "--log-dir": str(self.log_dir),
            "--zygote": self.zygote,
            "--start": self.start,
            "--policy": self.policy,
            "--lifeline-fd": None if self.lifeline is None else str(self.lifeline),
        }
        options = [f"{flag}={value}" for flag, value in pairs.items() if value is not None]
        switches = [*(["--discover"] if self.discover else []), *(["-m"] if self.module else [])]
        return [*options, *switches, "--", *self.argv]

    @classmethod
    def parse(cls, argv: Sequence[str]) -> AgentConfig:
        """Read an agent's command line; leaves the program with code 2 on bad input, as argparse does."""
        parser = argparse.ArgumentParser(prog="tlaunch-agent", allow_abbrev=False)
        parser.add_argument("--job", required=True)
        parser.add_argument("--node", required=True)
        parser.add_argument("--slots", type=int, required=True)
        parser.add_argument("--domain")
        parser.add_argument("--rack")
        parser.add_argument("--pod")
        parser.add_argument("--discover", action="store_true")
        parser.add_argument("--host", required=True)
        parser.add_argument("--log-dir", type=Path, required=True)
        parser.add_argument("--zygote")
        parser.add_argument("--start", choices=("fork", "fresh"), default="fork")
        parser.add_argument("--policy")
        parser.add_argument("--lifeline-fd", dest="lifeline", type=int)
        parser.add_argument("-m", dest="module", action="store_true")
        parser.add_argument("argv", nargs="+")
        given = parser.parse_args(argv)
        return cls(
            job=given.job,
            node=Node(given.node, given.slots, given.domain, given.rack, given.pod),
            discover=given.discover,
            host=given.host,
            log_dir=given.log_dir,
            zygote=given.zygote,
            start=cast("Literal['fork', 'fresh']", given.start),
            policy=given.policy,
            lifeline=given.lifeline,
            module=given.module,
            argv=tuple(given.argv),
        )
