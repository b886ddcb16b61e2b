"""The members of the cluster, and which of them to ask first.

There is one channel for each address, because only then is it known which member a request went to: one that does not
answer goes to the end of the line and the next is asked. Names are resolved here, by the system, since grpc's address
lists take no names and a name may stand for several members.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tlaunch.launcher.store.endpoints import Endpoints, split_host
from tlaunch.launcher.store.protocol import StoreUnavailable
from tlaunch.launcher.store.rpc import Connectivity, open_channel, pb

if TYPE_CHECKING:
    from tlaunch.launcher.store.tls import Pem

_RESOLVE_AGAIN_AFTER = 5.0
_LONGEST_PATIENCE = 4.0


def _service(stub: str) -> Any:  # noqa: ANN401  the generated protocol carries no types
    """Return an attribute with the methods of one of etcd's services, made when they are first asked for."""
    return cached_property(lambda member: getattr(pb, stub)(member.channel))


class Member:
    """One address of the cluster.

    ``proven`` is when the latest request was sent that it has answered, ``pace`` how many seconds an answer took last,
    and ``term`` counts the cluster's leaders as of an answer.
    """

    kv = _service("KVStub")
    leases = _service("LeaseStub")
    watches = _service("WatchStub")
    cluster = _service("ClusterStub")
    auth = _service("AuthStub")
    maintenance = _service("MaintenanceStub")

    def __init__(self, host: str, target: str, pem: Pem | None) -> None:
        name, _ = split_host(host)
        self.host = host
        self.target = target
        self.proven = float("-inf")
        self.pace = 0.0
        self.term = 0
        self.channel = open_channel(target, name, (pem.ca, pem.key, pem.cert) if pem else None)

    @property
    def connected(self) -> bool | None:
        """Whether there is a connection, with TLS where it is asked for; ``None`` while the first is being made."""
        return {Connectivity.READY: True, Connectivity.TRANSIENT_FAILURE: False}.get(self.channel.get_state())

    def answered(self, asked: float) -> None:
        """Note that a request sent at ``asked`` has just been answered."""
        self.proven = max(self.proven, asked)
        self.pace = time.monotonic() - asked

    def patience(self, least: float) -> float:
        """Return how long to wait for an answer: ``least``, or more where answers come slowly but do come."""
        return max(least, min(3 * self.pace, _LONGEST_PATIENCE))

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self.channel.close()


class Cluster:
    """All members in the order in which to ask them."""

    def __init__(self, endpoints: Endpoints, pem: Pem | None) -> None:
        self.endpoints = endpoints
        self._pem = pem
        self._members: list[Member] = []
        self._retired: list[Member] = []
        self._resolved_at = float("-inf")

    def __len__(self) -> int:
        return len(self._members)

    @property
    def first(self) -> Member:
        """The member to ask now."""
        return self._members[0]

    def demote(self, member: Member) -> None:
        """Ask the others first from now on."""
        if member in self._members:
            self._members.remove(member)
            self._members.append(member)

    async def resolve(self, timeout: float) -> None:
        """Look the names up, again if that was more than a few seconds ago; a name that is not found changes nothing.

        Raises:
            StoreUnavailable: no name could be resolved in time, and no member is known from before.

        """
        if time.monotonic() - self._resolved_at < _RESOLVE_AGAIN_AFTER:
            return
        self._resolved_at = time.monotonic()
        found: dict[str, str] = {}
        failures: list[str] = []
        for host in self.endpoints.hosts:
            try:
                async with asyncio.timeout(timeout):
                    found |= dict.fromkeys(await _addresses(host), host)
            except (OSError, TimeoutError) as error:
                failures.append(f"{host} ({error.strerror or 'no answer'})")
        if found:
            self._adopt(found)
        elif not self._members:
            raise StoreUnavailable(f"cannot find the etcd host {', '.join(failures)}; expected a name that resolves")

    async def close(self) -> None:
        """Close every channel, and forget them: grpc ends its thread only when the last channel is garbage."""
        members, self._members, self._retired = self._members + self._retired, [], []
        await asyncio.gather(*(member.close() for member in members))

    def _adopt(self, found: dict[str, str]) -> None:
        known = {member.target for member in self._members}
        fresh = [Member(host, target, self._pem) for target, host in found.items() if target not in known]
        # Many clients share a cluster: let them spread over its members.
        random.shuffle(fresh)
        # Closing a channel cancels calls that may still be under way, so members that are gone only retire.
        self._retired += [member for member in self._members if member.target not in found]
        self._members = [member for member in self._members if member.target in found] + fresh


async def _addresses(host: str) -> list[str]:
    """Resolve ``host:port`` to the targets that grpc takes without looking anything up."""
    name, port = split_host(host)
    with contextlib.suppress(ValueError):
        return [_target(str(ipaddress.ip_address(name)), port)]
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    # The address of a link-local host carries its interface: fe80::1%eth0.
    numeric = [socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0] for *_, address in found]
    return [_target(address, port) for address in dict.fromkeys(numeric)]


def _target(address: str, port: int) -> str:
    if ":" in address:
        return f"ipv6:%5B{quote(address, safe=':')}%5D:{port}"
    return f"ipv4:{address}:{port}"
