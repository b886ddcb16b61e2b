"""Real etcd clusters for jobs to run on, which tests may harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.members import Member, Members, single, until_healthy
from tests.support.proxy import Proxy


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Members]:
    """Three members, which are well when the test begins."""
    (tmp_path / "etcd").mkdir()
    with Members(tmp_path / "etcd") as members:
        members.heal()
        yield members


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    """One member alone."""
    (tmp_path / "etcd").mkdir()
    with single(tmp_path / "etcd") as member:
        until_healthy([member])
        yield member


@pytest.fixture
def relay(member: Member) -> Iterator[Proxy]:
    """What stands before the one member, and may hold up what passes."""
    with Proxy(member.host) as proxy:
        yield proxy
