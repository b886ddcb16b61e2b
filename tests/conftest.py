"""What holds for every test: no randomness between runs, and nothing left behind."""

from __future__ import annotations

import multiprocessing.resource_tracker
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.leaks import MARK, Holdings, Run

# The same examples on every run and every machine; slow examples are bounded by the test's own timeout.
settings.register_profile("tlaunch", derandomize=True, deadline=None)
settings.load_profile("tlaunch")

HELD = pytest.StashKey[tuple[Run, Holdings]]()


@pytest.fixture(scope="session", autouse=True)
def test_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Mark what this run starts, keep its temporary files apart, and check shared fixtures at the end."""
    tmp_path_factory.getbasetemp()  # made before the default changes: tmp_path stays where pytest puts it
    multiprocessing.resource_tracker.ensure_running()  # once started it stays, so it must not count for one test
    run = Run(mark=uuid.uuid4().hex, temporary=Path(tempfile.mkdtemp(prefix="tl-")))  # short: it holds sockets
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, run.mark)
        patch.setenv("TMPDIR", str(run.temporary))
        patch.setattr(tempfile, "tempdir", str(run.temporary))
        before = run.take()
        yield run
        left = run.leaked(before)
    shutil.rmtree(run.temporary)
    if left and not request.session.shouldfail:  # stopped early (-x): there is a first failure to look at already
        pytest.fail("the test run left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _holdings(request: pytest.FixtureRequest, test_run: Run) -> None:
    """Note what is held before the test; the hook below compares when all of the test's fixtures are gone."""
    request.node.stash[HELD] = test_run, test_run.take()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield
    if held := item.stash.get(HELD, None):
        run, before = held
        if left := run.leaked(before):
            pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)
