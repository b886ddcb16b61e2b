from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tlaunch.errors import InputError
from tlaunch.launcher.hosts import registry
from tlaunch.launcher.hosts.registry import JobRunning, RunningJob

ETCD = "http://127.0.0.1:2379"


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both places of the registry lie below ``tmp_path``."""
    place = tmp_path / "run"
    place.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    monkeypatch.setattr(registry, "_SHARED", tmp_path)
    return place


def write(runtime: Path, **changes: object) -> Path:
    """Write the file of a job that this process could have registered, with changes."""
    with registry.register("other", ETCD) as job:
        document = {"job_id": job.job_id, "etcd": job.etcd, "pid": job.pid, "started": job.started, **changes}
    path = runtime / "tlaunch" / f"{document['job_id']}.json"
    path.write_text(json.dumps(document))
    return path


def test_a_job_is_found_while_it_is_registered(runtime: Path) -> None:
    with registry.register("gpt", ETCD) as job:
        assert job == RunningJob("gpt", ETCD, os.getpid(), job.started)
        assert registry.running() == [job]
        assert registry.find(None) == registry.find("gpt") == job
        assert (runtime / "tlaunch").stat().st_mode & 0o777 == 0o700
    assert registry.running() == []
    assert list((runtime / "tlaunch").iterdir()) == []


def test_the_file_goes_when_the_job_fails(runtime: Path) -> None:
    with pytest.raises(ZeroDivisionError), registry.register("gpt", ETCD):
        raise ZeroDivisionError
    assert list((runtime / "tlaunch").iterdir()) == []


def test_the_same_id_twice_is_refused() -> None:
    with registry.register("gpt", ETCD) as job:
        with pytest.raises(JobRunning, match=rf"job 'gpt' is already running \(pid {os.getpid()}\)"):
            registry.register("gpt", ETCD).__enter__()
        assert registry.running() == [job]


@pytest.mark.parametrize("value", [None, "", "/nowhere/at/all"])
def test_without_a_runtime_directory_it_is_one_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    with registry.register("gpt", ETCD) as job:
        assert registry.find("gpt") == job
        assert len(list((tmp_path / f"tlaunch-{os.getuid()}").glob("gpt.*.json"))) == 1


def test_what_a_dead_launcher_left_is_removed(runtime: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    path = write(runtime, pid=ended.pid)
    assert registry.running() == []
    assert not path.exists()


def test_a_zombie_is_not_running(runtime: Path) -> None:
    zombie = subprocess.Popen(["sleep", "60"])
    started = registry._start_time(zombie.pid)
    path = write(runtime, pid=zombie.pid, started=started)
    assert [job.pid for job in registry.running()] == [zombie.pid]
    zombie.kill()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # ended, but not reaped
    assert registry.running() == []
    assert not path.exists()
    zombie.wait()


def test_the_end_of_a_launcher_can_be_waited_for(runtime: Path) -> None:
    launcher = subprocess.Popen(["sleep", "60"])
    job = RunningJob("gpt", ETCD, launcher.pid, registry._start_time(launcher.pid) or 0)
    fd = registry.launcher_fd(job)
    assert fd is not None
    assert select.select([fd], [], [], 0)[0] == []
    launcher.kill()
    assert select.select([fd], [], [], 10)[0] == [fd]
    os.close(fd)
    assert registry.launcher_fd(job) is None  # a zombie
    launcher.wait()
    assert registry.launcher_fd(job) is None
    assert registry.launcher_fd(RunningJob("gpt", ETCD, os.getpid(), 1)) is None


def test_a_recycled_pid_is_not_believed(runtime: Path) -> None:
    path = write(runtime, started=1)
    assert registry.running() == []
    assert not path.exists()


def test_a_stale_file_does_not_block_its_id(runtime: Path) -> None:
    write(runtime, started=1)
    with registry.register("other", ETCD) as job:
        assert registry.running() == [job]


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"job_id": 1}', '{"job_id": "a", "x": 2}', "\xff"])
def test_a_file_that_is_no_entry_is_removed(runtime: Path, content: str) -> None:
    path = write(runtime)
    path.write_bytes(content.encode("latin-1"))
    assert registry.running() == []
    assert not path.exists()


def test_wrong_types_are_not_believed(runtime: Path) -> None:
    path = write(runtime, etcd=5)
    assert registry.running() == []
    assert not path.exists()


def test_a_directory_that_others_can_write_to_is_refused(runtime: Path) -> None:
    (runtime / "tlaunch").mkdir()
    (runtime / "tlaunch").chmod(0o777)
    with pytest.raises(InputError, match=r"/run/tlaunch: expected a directory that only user \d+ can write to"):
        registry.running()
    with pytest.raises(InputError, match="found drwxrwxrwx of user"):
        registry.register("gpt", ETCD).__enter__()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(runtime: Path) -> None:
    (runtime / "tlaunch").mkdir(0o700)
    os.chown(runtime / "tlaunch", 12345, 12345)
    with pytest.raises(InputError, match="found drwx------ of user 12345; remove it"):
        registry.register("gpt", ETCD).__enter__()


def test_a_link_in_place_of_the_directory_is_refused(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "trap").mkdir(0o700)
    (runtime / "tlaunch").symlink_to(tmp_path / "trap")
    with pytest.raises(InputError, match="expected a directory that only user"):
        registry.register("gpt", ETCD).__enter__()


def test_a_directory_that_cannot_be_made_is_one_line(runtime: Path) -> None:
    (runtime / "tlaunch").write_text("in the way")
    with pytest.raises(InputError, match=r"/run/tlaunch: cannot make the directory of running jobs: File exists"):
        registry.register("gpt", ETCD).__enter__()


def test_find_says_what_it_found_instead() -> None:
    with pytest.raises(
        InputError, match=r"^no job is running here as this user; for one that uses another etcd give --etcd$"
    ):
        registry.find(None)
    with pytest.raises(InputError, match=r"^no job 'gpt' is running here as this user; "):
        registry.find("gpt")
    with registry.register("gpt-a", ETCD), registry.register("bert", ETCD):
        with pytest.raises(InputError, match=r"^several jobs are running: bert, gpt-a; name one of them$"):
            registry.find(None)
        with pytest.raises(InputError, match=r"^no job 'gpt-b' is running here; did you mean 'gpt-a'\?$"):
            registry.find("gpt-b")
        with pytest.raises(InputError, match=r"^no job 'x' is running here; running: bert, gpt-a$"):
            registry.find("x")
