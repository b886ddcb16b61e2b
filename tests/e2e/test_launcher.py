"""What may go wrong around a job, at its launcher: the end is quick, and one line says why."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.job import Job, running

PAIR = ("--nodes", "2", "--gpus-per-node", "1")


def console(job: Job) -> str:
    return (job.logs.parent / "console").read_text()


def test_a_job_whose_own_etcd_is_killed_ends_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        launcher = psutil.Process(job.process.pid)
        processes = launcher.children(recursive=True)
        (etcd,) = (process for process in processes if process.name() == "etcd")
        started = time.monotonic()
        etcd.kill()
        assert job.ended() == 1, job.told()
        assert time.monotonic() - started < 5, "it must not wait for the answers of an etcd that is gone"
        reason = f"the embedded etcd has ended: killed by SIGKILL; see {job.logs / 'etcd.log'}"
        assert reason in console(job)
        assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_what_is_meant_for_another_etcd_reaches_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLAUNCH_ETCD_CACERT", str(tmp_path / "ca.pem"))  # would make agents refuse an etcd without TLS
    monkeypatch.setenv("TLAUNCH_ETCD_PASSWORD", "secret")
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        for process in psutil.Process(job.process.pid).children(recursive=True):
            own = Path(f"/proc/{process.pid}/environ").read_text()
            assert "secret" not in own or process.name() == "etcd", process.cmdline()
        job.finish()


def test_under_nohup_a_job_outlives_its_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does; the launcher inherits it
    try:
        with running(tmp_path, *PAIR) as job:
            job.seats(0, 2)
            job.process.send_signal(signal.SIGHUP)
            job.another_step(2)
            job.finish()
            assert "stopping" not in console(job)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["zygote.log", "events.jsonl", "agents/node-01.log"])
def test_a_log_that_cannot_be_written_is_one_line_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "logs" / name).mkdir(parents=True)
    started = time.monotonic()
    with running(tmp_path, *PAIR) as job:
        assert job.ended() == 2
        assert console(job) == f"tlaunch: {job.logs / name}: Is a directory\n"
    assert time.monotonic() - started < 10, "it must not wait for the agents that have been started"


def test_a_temporary_directory_too_deep_for_a_socket_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    with running(tmp_path, *PAIR) as job:
        assert job.ended() == 2
        (line,) = console(job).splitlines()
        assert line.startswith(f"tlaunch: {deep}/tlaunch-run-")
        assert line.endswith("/zygote: too long for a socket, which takes 105 bytes; set a shorter TMPDIR")
        assert list(deep.iterdir()) == []
