"""The agent, one for each node: a participant whose slots run processes."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from tlaunch.checkpoint.home import SOCKET
from tlaunch.launcher.control.config import AgentConfig
from tlaunch.launcher.control.meeting import Venue
from tlaunch.launcher.control.output import Output
from tlaunch.launcher.control.participant import Participant
from tlaunch.launcher.control.probe import Listener
from tlaunch.launcher.control.program import Program
from tlaunch.launcher.control.records import Registration
from tlaunch.launcher.control.saver import NodeSaver
from tlaunch.launcher.control.slots import Slots
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.control.vigil import Vigil
from tlaunch.launcher.control.zygotes import ZygoteSource, base_environment
from tlaunch.launcher.core.policy import Policy
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store.endpoints import VARIABLES
from tlaunch.launcher.store.protocol import Store
from tlaunch.topology.discover.nvml import gpu_count


class Agent:
    """One node of one job: ``take_part``, and however that ends, ``end``."""

    def __init__(self, config: AgentConfig, store: Store, spec: JobSpec, policy: Policy, output: Output) -> None:
        self._config = config
        self._store = store
        self._spec = spec
        self._policy = policy
        self._output = output
        self._timing = Timing()
        self._timing.check(spec)
        env = _worker_base(config)
        log_file = config.log_dir / "agents" / f"{config.node.name}.zygote.log"
        self._zygotes = ZygoteSource(config.zygote, env, log_file, self._timing)
        saver_log = config.log_dir / "agents" / f"{config.node.name}.saver.log"
        # Beside the socket of a shared zygote: then it is the launcher that tidies up, also when we are killed.
        folder = Path(config.zygote).parent if config.zygote else None
        self._saver = NodeSaver(env, saver_log, self._timing, folder)
        program = Program(
            job=config.job,
            argv=config.argv,
            module=config.module,
            start=config.start,
            cwd=str(Path.cwd()),
            env={**env, SOCKET: self._saver.path},
            log_dir=config.log_dir,
            gpus=_has_gpus(),
            asked=spec.hang_timeout > 0,
        )
        self._slots = Slots(
            config.node, program, self._zygotes.get, output, timing=self._timing, changed=self._report_due
        )
        self._venue = Venue(self._zygotes.get, config.host, env, config.log_dir)
        self._listener = Listener(uuid.uuid4().hex)
        self._participant: Participant | None = None

    async def take_part(self) -> None:
        """Take part until the job has a result.

        The node registers once its standbys are warm: what a plan asks of it is then a matter of moments.
        """
        address = await self._listener.open(self._config.host)
        self._saver.open()
        registration = Registration(
            node=self._config.node,
            host=socket.gethostname(),
            pid=os.getpid(),
            incarnation=self._listener.incarnation,
            address=address,
        )
        await self._slots.warm(None)
        self._participant = Participant(
            self._store,
            registration,
            self._spec,
            self._policy,
            slots=self._slots,
            venue=self._venue,
            timing=self._timing,
        )
        await self._participant.take_part(self._output.run, *self._vigil())

    async def end(self) -> None:
        """End every process of this node, hand over what they have printed, and leave the job."""
        self._venue.close()
        await self._slots.stop(self._timing.stop_grace)
        self._saver.let_go()
        await self._output.drain(self._timing.final_output)
        if self._participant is not None:
            await self._participant.leave()
        await self._zygotes.close()
        await self._listener.close()
        await self._saver.end()

    def _vigil(self) -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
        """Yield what looks for ranks that hang, if anybody wants to know."""
        timeout, slots = self._spec.hang_timeout, self._slots
        if timeout > 0:
            vigil = Vigil(lambda: slots.running, slots.tell_hung, timeout=timeout, slots=self._config.node.slots)
            yield vigil.run

    def _report_due(self) -> None:
        if self._participant is not None:
            self._participant.report_due()


def _worker_base(config: AgentConfig) -> dict[str, str]:
    """Return what workers inherit. How to get at the store is none of their business, a password least of all.

    With a shared zygote the launcher has prepared the environment, and the two have to agree.
    """
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return env if config.zygote else base_environment(env, config.node.slots)


def _has_gpus() -> bool:
    """Tell whether slots are GPUs here."""
    return bool(gpu_count())
