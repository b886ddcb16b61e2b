from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.topology.discover.standin import Driver, build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(built: Driver) -> Iterator[Driver]:
    """The newest driver, on a machine without GPUs until the test says what it is."""
    built.be()
    yield built
    built.be()
