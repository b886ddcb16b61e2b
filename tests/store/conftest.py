"""Both stores behind one face, and real clusters to break."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio

from tests.store.members import Member, Members, ctl
from tlaunch.launcher.store import EmbeddedEtcd, EtcdStore, MemoryStore, Store, connect

_numbers = itertools.count()


class World(Protocol):
    """A store with the means to do what no client of it can."""

    prefix: str

    @property
    def store(self) -> Store: ...

    async def client(self) -> Store:
        """Another client of the same store."""
        ...

    async def compact(self, revision: int) -> None: ...

    async def expire(self, lease: int) -> None:
        """End a lease behind its holder's back."""
        ...

    async def pass_time(self, seconds: float) -> None:
        """Let at least this time pass for leases."""
        ...


class MemoryWorld:
    def __init__(self) -> None:
        self.store = MemoryStore(probe=0.1)
        self.prefix = "/test/"

    async def client(self) -> MemoryStore:
        return self.store.client()

    async def compact(self, revision: int) -> None:
        self.store.compact(revision)

    async def expire(self, lease: int) -> None:
        self.store.expire(lease)

    async def pass_time(self, seconds: float) -> None:
        # In steps, as a keepalive would renew in between.
        for _ in range(10):
            self.store.advance(seconds / 10)


class EtcdWorld:
    def __init__(self, embedded: EmbeddedEtcd, store: EtcdStore, folder: Path) -> None:
        self._embedded = embedded
        self._member = Member("embedded", folder, [f"http://{embedded.endpoints}"], "", ())
        self._clients: list[EtcdStore] = []
        self.store = store
        self.prefix = f"/test/{next(_numbers)}/"

    async def client(self) -> EtcdStore:
        store = await connect(self._embedded.endpoints)
        self._clients.append(store)
        return store

    async def compact(self, revision: int) -> None:
        ctl([self._member], "compact", str(revision))

    async def expire(self, lease: int) -> None:
        ctl([self._member], "lease", "revoke", f"{lease:x}")

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedEtcd]:
    async with EmbeddedEtcd(tmp_path_factory.mktemp("embedded")) as etcd:
        yield etcd


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded_store(embedded: EmbeddedEtcd) -> AsyncIterator[EtcdStore]:
    """One client for all tests that run in the session's event loop, which saves the start and end of grpc in each."""
    store = await connect(embedded.endpoints)
    yield store
    await store.close()


@pytest_asyncio.fixture(loop_scope="session")
async def etcd_world(embedded: EmbeddedEtcd, embedded_store: EtcdStore, tmp_path: Path) -> AsyncIterator[EtcdWorld]:
    world = EtcdWorld(embedded, embedded_store, tmp_path)
    yield world
    await world.close()


@pytest.fixture(params=["memory", "etcd"])
def world(request: pytest.FixtureRequest) -> World:
    """Every test of the contract runs in both worlds."""
    if request.param == "memory":
        return MemoryWorld()
    found: EtcdWorld = request.getfixturevalue("etcd_world")
    return found


@pytest.fixture(scope="session")
def shared_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with Members(tmp_path_factory.mktemp("members")) as members:
        members.heal()
        yield members


@pytest.fixture
def members(request: pytest.FixtureRequest, shared_members: Members, tmp_path: Path) -> Iterator[Members]:
    """Three members, all well when the test begins: those of the session, or new ones for a test that kills some."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("fault") == "kill":
        with Members(tmp_path) as fresh:
            fresh.heal()
            yield fresh
        return
    yield shared_members
    shared_members.heal()
