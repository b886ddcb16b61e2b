"""``python -m tlaunch.launcher.control``: one agent."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace

from tlaunch.errors import InputError, TlaunchError
from tlaunch.launcher.control.agent import Agent
from tlaunch.launcher.control.config import AgentConfig
from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.output import Alarm, Output, claim_standard_output, open_stream
from tlaunch.launcher.control.policies import load_policy
from tlaunch.launcher.core.codec import decode
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.process.lifeline import arm
from tlaunch.launcher.store.endpoints import Endpoints
from tlaunch.launcher.store.etcd import connect_and_get
from tlaunch.launcher.store.protocol import StoreError


def main() -> int:
    """Run one agent until its job has ended. Standard output carries what the ranks print, one JSON object a line."""
    config = AgentConfig.parse(sys.argv[1:])
    if config.lifeline is not None:
        arm(config.lifeline, os.getpgrp())  # should the starter have died before it could do it
    logging.basicConfig(
        level=os.environ.get("TLAUNCH_LOG_LEVEL", "INFO"),
        format=f"%(asctime)s {config.node.name} %(levelname)s %(message)s",
    )
    try:
        if config.discover:
            config = _placed(config)
        return asyncio.run(_run(config, claim_standard_output()))
    except TlaunchError as error:
        logging.error("%s", error)  # noqa: LOG015, TRY400  # the one clear line, for the launcher to show
        return error.exit_code


def _placed(config: AgentConfig) -> AgentConfig:
    """Find out where the node is. Done before there is a lease to keep: Slurm may take seconds to answer."""
    from tlaunch.topology.discover.gather import discover, placed, remarks

    found = discover(alone=True)
    node = placed(config.node, found)
    for line in remarks(found):
        logging.warning("%s", line)  # noqa: LOG015  as above
    logging.info("domain %s, rack %s, pod %s", node.domain, node.rack, node.pod)  # noqa: LOG015
    return replace(config, node=node)


async def _run(config: AgentConfig, stdout: int) -> int:
    endpoints = Endpoints.given(env=os.environ)
    if endpoints is None:
        raise InputError("no store: expected TLAUNCH_ETCD in the agent's environment")
    keys = Keys(config.job)
    store, kv = await connect_and_get(endpoints, keys.spec)
    try:
        if kv is None:
            raise StoreError(
                f"job {config.job} does not exist in the store: expected its launcher to have written {keys.spec}"
            )
        output = Output(await open_stream(stdout))
        alarm = Alarm(output)
        logging.getLogger("tlaunch").addHandler(alarm)
        agent = Agent(config, store, decode(JobSpec, kv.value, keys.spec), load_policy(config.policy), output)
        taking_part = asyncio.create_task(agent.take_part())
        # Once the end has begun, SIGTERM changes nothing any more.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, taking_part.cancel)
        try:
            await taking_part
        except asyncio.CancelledError:
            return 128 + signal.SIGTERM
        finally:
            await agent.end()
            logging.getLogger("tlaunch").removeHandler(alarm)
    finally:
        await store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
