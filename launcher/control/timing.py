"""Every deadline of agents, the controller and the launcher, with the relations that they must have.

All values are seconds. What is said here of each stands in ``docs/failures.md`` too, which is made from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tlaunch.errors import InputError
from tlaunch.launcher.control.spawn import EXIT_STATUS_SECONDS
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.store.session import ATTEMPT
from tlaunch.launcher.store.watch import Patience


class Deadline(NamedTuple):
    """One of them: its name, how long it is by default, what is waited for, and what happens when it has passed."""

    name: str
    seconds: float
    wait: str
    then: str


def _wait(seconds: float, wait: str, then: str) -> Any:  # noqa: ANN401  as with dataclasses.field
    return dataclasses.field(default=seconds, metadata={"wait": wait, "then": then})


@dataclass(frozen=True, slots=True)
class Timing:
    """The settings. Whoever starts something calls ``check`` with the job's own."""

    lease: float = _wait(4.0, "a sign of life of a node or the controller", "the node is lost; another is elected")
    gap: float = _wait(
        2.5,
        "the next proof of contact with the store, which comes at least every 1.5 s",
        "contact is broken: the plan is frozen, and nobody is called dead before a whole lease of contact",
    )
    request: float = _wait(2.0, "one request to the store", "its outcome is unknown; it is read, and tried again")
    probe: float = _wait(1.0, "an agent's answer, asked directly", "it is silent: only its lease tells more")
    answer: float = _wait(0.3, "a plan that deals with a failed rank", "its agent asks whether the controller is there")
    retry: float = _wait(0.2, "the next try of a request that has failed", "it is tried")
    policy: float = _wait(2.0, "a user's policy", "the default one decides")
    verdict: float = _wait(
        0.5, "other ranks that failed earlier, before a crash ends the job or costs a slot", "the plan is made"
    )
    yield_grace: float = _wait(
        0.5, "a worker's end after SIGTERM when its generation is over; what it holds is lost anyway", "SIGKILL"
    )
    stop_grace: float = _wait(5.0, "the same when the job ends", "SIGKILL")
    reap: float = _wait(10.0, "a process that was killed", "no acknowledgement: the node counts as failed")
    stopped: float = _wait(5.0, "a rank that a signal has stopped to go on", "it is killed, and counts as failed")
    warm: float = _wait(120.0, "a zygote to import torch and make a standby", "the rank could not be started")
    outage: float = _wait(600.0, "the store to come back, on a node without ranks that run", "its agent ends")
    saver: float = _wait(
        30.0, "a saver to write what its node's ranks had captured, when the agent ends or dies", "that is given up"
    )
    final_output: float = _wait(2.0, "what ranks have printed to be shown, at the end", "the log files have it")

    def __post_init__(self) -> None:
        if not self.retry < self.probe < self.request < self.lease:
            raise InputError(
                "timing: expected retry < probe < request < lease, "
                f"got {self.retry} {self.probe} {self.request} {self.lease}"
            )
        if not self.lease < self.outage:
            raise InputError(f"timing: expected an outage longer than the lease, got {self.outage} and {self.lease} s")
        if self.lease < 2:
            raise InputError(f"timing: a lease of {self.lease} s is shorter than the 2 s that etcd grants at least")
        # A lease is renewed every third of its time, so that a stall of two thirds may end it at the server. Contact
        # must count as broken by then: otherwise healthy nodes look lost to a controller that was never away.
        if not self.gap < self.lease * 2 / 3:
            raise InputError(
                f"timing: expected a gap shorter than two thirds of the lease, got {self.gap} of {self.lease} s"
            )

    def check(self, spec: JobSpec) -> None:
        """Raise ``InputError`` unless these deadlines fit those of the store and of the job."""
        clearing = self.yield_grace + EXIT_STATUS_SECONDS + self.reap
        relations = (
            ("one try at a member of etcd", ATTEMPT, "request", self.request),
            ("a silent watch of etcd", Patience().silence, "lease", self.lease),
            ("the time between proofs of contact", Patience().probe, "gap", self.gap),
            ("yield_grace + the wait for an exit code + reap", clearing, "ack_timeout", spec.ack_timeout),
            ("lease + verdict", self.lease + self.verdict, "ack_timeout", spec.ack_timeout),
            ("warm", self.warm, "start_timeout", spec.start_timeout),
        )
        for small, seconds, large, limit in relations:
            if not seconds < limit:
                raise InputError(f"timing: expected {small} ({seconds:g} s) to be shorter than {large} ({limit:g} s)")


def deadlines() -> Iterator[Deadline]:
    """Yield all of them, the settings first, with their defaults."""
    default = Timing()
    for setting in dataclasses.fields(Timing):
        seconds: float = getattr(default, setting.name)
        yield Deadline(setting.name, seconds, setting.metadata["wait"], setting.metadata["then"])
    job: dict[str, Any] = {setting.name: setting.default for setting in dataclasses.fields(JobSpec)}
    yield Deadline(
        "start_timeout", job["start_timeout"], "all nodes to register", "the job ends, and says how many did"
    )
    yield Deadline("ack_timeout", job["ack_timeout"], "an agent to apply a plan", "its node counts as failed")
    patience = Patience()
    yield Deadline("etcd: attempt", ATTEMPT, "one member's answer to a read", "the next member is asked")
    yield Deadline(
        *("etcd: silence", patience.silence),
        f"any word of a watch, which is asked for one when its member has answered nothing for {patience.probe:g} s",
        "another member",
    )
    yield Deadline(
        "exit code", EXIT_STATUS_SECONDS, "a zygote to tell how a process ended", "what the process has said"
    )
