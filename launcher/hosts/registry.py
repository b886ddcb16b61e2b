"""The jobs that this user runs on this machine, so that ``tlaunch kill --rank 1`` finds its job by itself.

One small JSON file for each job, in a directory that belongs to the user alone. A file counts only while the launcher
that wrote it lives: its pid is believed together with its start time, because pids are used again. What is left of a
launcher that was killed is removed by whoever finds it.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from tlaunch.errors import InputError

_SHARED = Path("/tmp")  # noqa: S108  not TMPDIR, which differs from shell to shell; see _check_owned
_MAX_BYTES = 1 << 16


class JobRunning(InputError):
    """A job of this id is already running."""


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job and its launcher. ``etcd`` is what ``--etcd`` takes; ``started`` is when ``pid`` began, in clock ticks."""

    job_id: str
    etcd: str
    pid: int
    started: int


@contextlib.contextmanager
def register(job_id: str, etcd: str) -> Iterator[RunningJob]:
    """Keep a job in the registry for as long as the context lasts. ``etcd`` is what ``--etcd`` takes.

    Raises:
        JobRunning: a living launcher of this user has registered the same id.
        InputError: the registry's directory cannot be trusted or written.
    """
    started = _start_time(os.getpid())
    assert started is not None, "a process can read its own entry in /proc"
    job = RunningJob(job_id, etcd, os.getpid(), started)
    path = _publish(_own_directory(), job)
    try:
        # Look only after our own file is there: of two that start at once, at least one sees the other.
        other = next((other for at, other in _entries() if other.job_id == job_id and at != path), None)
        if other is not None:
            raise JobRunning(f"job {job_id!r} is already running (pid {other.pid}); choose another --job-id")
        yield job
    finally:
        path.unlink(missing_ok=True)


def running() -> list[RunningJob]:
    """Return the running jobs of this user, sorted by id. What is stale is removed on the way."""
    return sorted((job for _, job in _entries()), key=lambda job: job.job_id)


def find(job_id: str | None) -> RunningJob:
    """Return the job of this id, or the only one that is running when ``job_id`` is ``None``.

    Raises:
        InputError: there is no such job, or ``None`` could mean several.
    """
    jobs = running()
    names = [job.job_id for job in jobs]
    if not jobs:
        which = "no job is" if job_id is None else f"no job {job_id!r} is"
        raise InputError(f"{which} running here as this user; for one that uses another etcd give --etcd")
    if job_id is None:
        if len(jobs) > 1:
            raise InputError(f"several jobs are running: {', '.join(names)}; name one of them")
        return jobs[0]
    if job_id not in names:
        near = difflib.get_close_matches(job_id, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"running: {', '.join(names)}"
        raise InputError(f"no job {job_id!r} is running here; {hint}")
    return jobs[names.index(job_id)]


def launcher_fd(job: RunningJob) -> int | None:
    """Return a pidfd of a job's launcher, which becomes readable when it ends; ``None`` when it has ended already."""
    try:
        fd = os.pidfd_open(job.pid)
    except ProcessLookupError:
        return None
    if _start_time(job.pid) == job.started:  # looked at only now: the pid cannot change hands while we hold the fd
        return fd
    os.close(fd)
    return None


def _entries() -> Iterator[tuple[Path, RunningJob]]:
    directory = _directory()
    if directory.is_dir():
        _check_owned(directory)
        for path in sorted(directory.glob("*.json")):
            if (job := _living(path)) is not None:
                yield path, job


def _directory() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "tlaunch" if runtime and Path(runtime).is_dir() else _SHARED / f"tlaunch-{os.getuid()}"


def _own_directory() -> Path:
    directory = _directory()
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot make the directory of running jobs: {error.strerror}") from None
    _check_owned(directory)
    return directory


def _check_owned(directory: Path) -> None:
    """Refuse a directory in which somebody else could place or change files."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InputError(
            f"{directory}: expected a directory that only user {os.getuid()} can write to, "
            f"found {stat.filemode(found.st_mode)} of user {found.st_uid}; remove it"
        )


def _publish(directory: Path, job: RunningJob) -> Path:
    """Write the file of a job, under a name of its own, so that nobody who removes a stale one can hit it."""
    descriptor, draft = tempfile.mkstemp(prefix=f"{job.job_id}.", dir=directory)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(job), file)
    return Path(draft).rename(f"{draft}.json")  # complete, or not there at all


def _living(path: Path) -> RunningJob | None:
    """Read one file; remove it when its launcher is gone."""
    job = _read(path)
    if job is not None and _start_time(job.pid) == job.started:
        return job
    path.unlink(missing_ok=True)
    return None


def _read(path: Path) -> RunningJob | None:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_BYTES))
        job = RunningJob(**document)
    except (OSError, ValueError, TypeError, RecursionError):  # gone, not JSON, not the fields of a RunningJob
        return None
    return job if tuple(map(type, astuple(job))) == (str, str, int, int) else None


def _start_time(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; ``None`` when it has ended, a zombie included."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses itself; see proc_pid_stat(5).
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
