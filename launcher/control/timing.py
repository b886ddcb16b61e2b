"""Every deadline of agents and the controller, derived from a few settings whose relations are checked.

All values are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlaunch.errors import InputError


@dataclass(frozen=True, slots=True)
class Timing:
    """``lease``: a node that has not been heard of for this long is lost. ``request``: one request to the store.

    ``gap``: contact with the store is broken when two proofs of it are further apart; it is proven every second.
    ``policy``: how long a user's policy may think about what has happened, before the default one decides.
    ``verdict``: before a crash ends the job or costs a slot, or when there are only victims so far, other ranks have
    this long to report theirs, which may have come first.
    ``probe``: one direct question to an agent. ``answer``: until a plan has dealt with a failed rank;
    then its agent asks whether the controller is there. ``retry``: pause before a failed request is tried again.
    ``yield_grace``: what a worker gets between SIGTERM and SIGKILL when its generation is over; its state is lost
    anyway, so this only lets it say goodbye. ``stop_grace``: the same when the job ends. ``reap``: until a killed
    process is gone. ``stopped``: how long a rank may be stopped by a signal before it counts as failed. ``warm``:
    until a zygote has imported torch and has made a standby. ``outage``: how long a node without ranks that run waits
    for the store to come back.
    """

    lease: float = 4.0
    gap: float = 2.5
    request: float = 2.0
    probe: float = 1.0
    answer: float = 0.3
    retry: float = 0.2
    policy: float = 2.0
    verdict: float = 0.5
    yield_grace: float = 0.5
    stop_grace: float = 5.0
    reap: float = 10.0
    stopped: float = 5.0
    warm: float = 120.0
    outage: float = 600.0

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
