"""What the user asked for."""

from __future__ import annotations

from dataclasses import dataclass

from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Scope
from tlaunch.topology.spares import SpareRequest


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One launch of one script.

    ``nodes``: how many agents must register before the job starts. ``spares``: slots without a rank, in all;
    ``spread``: where they are kept, if somebody said so. ``strict``: a job that cannot have its spares, or its groups
    within the levels that the mesh names, does not start. ``max_restarts``:
    how many failures of the job's own code are forgiven. ``swap_scope``: how far a rank may move. ``min_world``: the
    fewest ranks that the job may shrink to. ``start_timeout``: seconds until all nodes must have registered.
    ``ack_timeout``: seconds an agent has to apply a plan before its node counts as failed. ``hang_timeout``: seconds in
    which no rank prints anything or gets any further, before one of them counts as failed; 0 for never. ``script`` is
    for people to read; agents run what their own command line names.
    """

    job_id: str
    nodes: int
    spares: int
    mesh: Mesh
    script: str = ""
    max_restarts: int = 3
    swap_scope: Scope = "rack"
    min_world: int = 1
    start_timeout: float = 300.0
    ack_timeout: float = 60.0
    spread: SpareRequest | None = None
    strict: bool = False
    hang_timeout: float = 0.0

    @property
    def world_size(self) -> int:
        """The ranks of an unshrunk job."""
        return self.mesh.size
