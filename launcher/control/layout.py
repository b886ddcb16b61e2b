"""Where everything of a job stands in the store, below ``/tlaunch/v1/<job>/``.

=====================  ============================================  ======================  ================
key                    value                                         written by              lease
=====================  ============================================  ======================  ================
``spec``               :class:`JobSpec`                              launcher, once          none
``launcher``           :class:`Launcher`                             launcher                launcher
``agents/<node>``      :class:`Registration`                         agent                   agent
``nodes/<node>``       :class:`Node`, which outlives the agent       agent                   none
``head/leader``        :class:`Leader`                               controller              agent
``head/generation``    :class:`Generation`                           controller              none
``plans/<gen>``        :class:`Plan`                                 controller              none
``assign/<node>``      :class:`Assignment`                           controller              none
``head/rendezvous/..`` :class:`Rendezvous`, by generation            agent of rank 0's node  none
``acks/<node>``        :class:`Ack`                                  agent                   none
``reports/<node>``     :class:`Report`                               agent                   none
``commands/job/...``   :class:`Drain` or :class:`Stop`, lasting      operator                none
``head/commands/...``  :class:`KillRank`, ...; the agent deletes it  operator                none
=====================  ============================================  ======================  ================

``reports/<node>`` and ``acks/<node>`` are states, not events: an agent overwrites its own, so that a new controller
sees the same as the old one did, and nothing piles up. Of ``plans`` and ``rendezvous`` the last 16 are kept.

``head/`` is what every agent watches, with one watch; so little stands there that each may know all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOT = "/tlaunch/v1/"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one job."""

    job: str

    @property
    def root(self) -> str:
        return f"{ROOT}{self.job}/"

    @property
    def spec(self) -> str:
        return self.root + "spec"

    @property
    def agents(self) -> str:
        return self.root + "agents/"

    @property
    def launcher(self) -> str:
        return self.root + "launcher"

    @property
    def nodes(self) -> str:
        return self.root + "nodes/"

    @property
    def leader(self) -> str:
        return self.head + "leader"

    @property
    def head(self) -> str:
        return self.root + "head/"

    @property
    def generation(self) -> str:
        return self.head + "generation"

    @property
    def plans(self) -> str:
        return self.root + "plans/"

    @property
    def assigns(self) -> str:
        return self.root + "assign/"

    @property
    def acks(self) -> str:
        return self.root + "acks/"

    @property
    def reports(self) -> str:
        return self.root + "reports/"

    @property
    def job_commands(self) -> str:
        return self.root + "commands/job/"

    def agent(self, node: str) -> str:
        return self.agents + node

    def node(self, node: str) -> str:
        return self.nodes + node

    def plan(self, generation: int) -> str:
        """The plan of one generation; zero-padded, so that keys sort by number."""
        return f"{self.plans}{generation:08d}"

    def assign(self, node: str) -> str:
        return self.assigns + node

    @property
    def meetings(self) -> str:
        return self.head + "rendezvous/"

    def rendezvous(self, generation: int) -> str:
        return f"{self.meetings}{generation:08d}"

    def ack(self, node: str) -> str:
        return self.acks + node

    def report(self, node: str) -> str:
        return self.reports + node

    def drain(self, target: str) -> str:
        """Drain of a node (``node-03``) or slot (``node-03/gpu-2``)."""
        return f"{self.job_commands}drain/{target}"

    @property
    def stop(self) -> str:
        return self.job_commands + "stop"

    def node_commands(self, node: str) -> str:
        return f"{self.head}commands/{node}/"
