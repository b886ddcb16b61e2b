"""From the command line to the launcher, which is left out: the end-to-end tests run the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Tlaunch
from tlaunch.launcher.hosts.registry import JobRunning
from tlaunch.launcher.hosts.request import RunRequest
from tlaunch.launcher.observe.live import LiveView
from tlaunch.launcher.observe.plain import PlainView
from tlaunch.launcher.observe.view import View
from tlaunch.launcher.store.protocol import StoreRefused, StoreUnavailable

RUN_LOCAL = "tlaunch.launcher.hosts.local.run_local"


def ends(monkeypatch: pytest.MonkeyPatch, how: int | Exception) -> list[tuple[RunRequest, View]]:
    """Let the launcher end in some way; returns what it is given."""
    given: list[tuple[RunRequest, View]] = []

    def run_local(request: RunRequest, view: View) -> int:
        given.append((request, view))
        view.notice("running")
        if isinstance(how, Exception):
            raise how
        return how

    monkeypatch.setattr(RUN_LOCAL, run_local)
    return given


@pytest.mark.parametrize("code", [0, 1, 7, 143])
def test_the_exit_code_is_that_of_the_job(tlaunch: Tlaunch, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    given = ends(monkeypatch, code)
    assert tlaunch("--gpus-per-node", "2", "--job-id", "gpt", "train.py", "--nodes")[:2] == (code, "")
    [(request, view)] = given
    assert (request.spec.job_id, request.spec.mesh.size, request.argv) == ("gpt", 2, ("train.py", "--nodes"))
    assert isinstance(view, PlainView)


def test_the_configuration_is_read(tlaunch: Tlaunch, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ends(monkeypatch, 0)
    (here / "conf.yaml").write_text("nodes: 3\ngpus-per-node: 2\nspares: 1\nscript: train.py\nargs: [--steps, 30]\n")
    assert tlaunch("--config", "conf.yaml", "--spares", "2")[0] == 0
    [(request, _)] = given
    assert (len(request.machine.slots), request.spec.spares) == (6, 2)
    assert request.argv == ("train.py", "--steps", "30")


def test_a_terminal_gets_the_live_view(tlaunch: Tlaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ends(monkeypatch, 0)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert tlaunch("--gpus-per-node", "1", "train.py")[0] == 0
    assert isinstance(given[0][1], LiveView)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobRunning("job 'gpt' is already running (pid 1)"), 2),
        (StoreUnavailable("no etcd member of a:1 answered"), 2),
        (StoreRefused("etcd at a:1 refuses user 'me'"), 2),
    ],
)
def test_a_job_that_cannot_start_is_one_line(
    tlaunch: Tlaunch, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    ends(monkeypatch, error)
    found, _, err = tlaunch("--gpus-per-node", "1", "train.py")
    assert found == code
    assert err == f"tlaunch: {error}\n"


def test_a_bug_leaves_its_traceback_in_the_log_directory(
    tlaunch: Tlaunch, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends(monkeypatch, KeyError("oops"))
    code, _, err = tlaunch("--gpus-per-node", "1", "--log-dir", "logs", "train.py")
    log = here / "logs" / "internal-error.log"
    assert code == 1
    assert err.splitlines() == [f"tlaunch: internal error: KeyError: 'oops'; the traceback is in {log}"]
    assert log.read_text().startswith("Traceback (most recent call last):\n")
    assert log.read_text().endswith("KeyError: 'oops'\n")
