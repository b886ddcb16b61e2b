"""What a worker may do to its job beyond failing: stop, leave, hang, hoard memory, leave processes behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.e2e.faults import fault
from tests.e2e.job import Job, node_of, running
from tlaunch.launcher.control.timing import Timing

PAIR = ("--nodes", "2", "--gpus-per-node", "1")

LOST = "steps since the checkpoint"

NOTICED = "with `--hang-timeout S`: no rank has printed anything or got any further for S seconds"
HANG = fault(
    "worker",
    "hang, in Python or in C",
    noticed=NOTICED,
    decision="the rank that the others wait for is told by the stacks of all; restart in place of all ranks",
    lost=f"{LOST}; S seconds",
)
HANG_OF_ALL = fault(
    "worker",
    "hang, in Python or in C",
    noticed=f"{NOTICED}; all wait, or none does",
    decision="the report says that the cause cannot be told; restart in place of all ranks",
    lost=f"{LOST}; S seconds",
)


def first_cause(job: Job) -> str:
    """Return the first of the causes of the second generation."""
    return str(job.events()[1]["causes"][0])


@fault(
    "worker",
    "stopped (SIGSTOP)",
    noticed="at once: the zygote, its parent, is told by the kernel",
    decision=f"after {Timing().stopped:g} s it is killed and restarted in place; one that goes on before is left alone",
    lost=LOST,
)
def test_a_rank_that_stays_stopped_is_restarted(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        before = job.seats(0, 2)
        pid = job.trace(1)[-1]["pid"]
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        job.another_step(2)
        os.kill(pid, signal.SIGSTOP)
        assert job.seats(1, 2) == before
        assert "rank 1" in first_cause(job)
        assert f"stopped by a signal for {Timing().stopped:g} s" in first_cause(job)
        job.finish()
        assert len(job.events()) == 3


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[tuple[str, ...]]:
    """Make a control group with a limit in bytes; yields the prefix of a command in it, or nothing if that cannot be.

    Version 1 only: where version 2 rules, no group with processes may hand its controllers on.
    """
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    places = [line.split(":", 2)[2] for line in lines if line.split(":", 2)[1] == "memory"]
    group = Path("/sys/fs/cgroup/memory", *(place.lstrip("/") for place in places), f"tlaunch-test-{os.getpid()}")
    try:
        if places:
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(size))
    except OSError:
        places = []
    if not places:
        yield ()
        return
    try:
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
    finally:
        group.rmdir()


@fault(
    "worker",
    "out-of-memory kill",
    noticed="at once: the agent holds a pidfd; the kernel's counter of such kills tells it from another SIGKILL",
    decision="restart in place; the report says *out of memory*",
    lost=LOST,
)
def test_a_rank_that_the_kernel_kills_for_its_memory_is_restarted_and_the_report_says_why(tmp_path: Path) -> None:
    with memory_limit(1 << 30) as prefix, running(tmp_path, *PAIR, prefix=prefix) as job:
        before = job.seats(0, 2)
        # Where this test may not limit memory, nobody else's kill may be taken for the kernel's.
        job.trouble(1, "hog" if prefix else "kill")
        assert job.seats(1, 2) == before
        assert "rank 1" in first_cause(job)
        assert "SIGKILL" in first_cause(job)
        assert ("out of memory" in first_cause(job)) == bool(prefix)
        job.finish()


@fault(
    "worker",
    "exits 0 early while others go on",
    noticed="at once: the agent holds a pidfd",
    decision="as under torchrun: it has finished; the job ends well when all others have, too",
    lost="nothing",
)
def test_a_rank_may_finish_before_the_others(tmp_path: Path) -> None:
    script = tmp_path / "uneven.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "if os.environ['RANK'] == '0':\n"
        "    os.mkfifo(folder / 'gate')\n"
        "    (folder / 'ready').touch()\n"
        "    (folder / 'gate').read_text()\n"
        "    (folder / 'through').touch()\n"
        "else:\n"
        "    (folder / 'leaver').write_text(str(os.getpid()))\n"
    )
    with running(tmp_path, *PAIR, script=script) as job:
        job.until((job.folder / "ready").exists, "rank 0 to wait")
        leaver = int(job.until_written(job.folder / "leaver"))
        job.until(lambda: not psutil.pid_exists(leaver), "rank 1 to end")
        (job.folder / "gate").write_text("")
        assert job.ended() == 0, job.told()
        assert (job.folder / "through").exists()
        assert len(job.events()) == 2


@fault(
    "worker",
    "exits 0 early while others go on",
    noticed="when the others miss it in a collective, and fail",
    decision="as under torchrun: all ranks are restarted, the finished one too",
    lost=LOST,
)
def test_a_rank_that_leaves_the_others_in_a_collective_is_started_again_with_them(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        before = job.seats(0, 2)
        job.trouble(1, "leave")
        assert job.seats(1, 2) == before
        job.finish()


@fault(
    "worker",
    "forks children of its own",
    noticed="at its end: the zygote looks for them",
    decision="they are killed with it, also those in a session of their own; the rank is dealt with as ever",
    lost="nothing more; a daemon that sheds environment *and* inherited descriptors is not found",
)
def test_what_a_rank_has_started_ends_with_it(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        job.seats(0, 2)
        job.trouble(1, "family")
        job.seats(1, 2)
        pids = json.loads((job.folder / "family").read_text())
        job.until(lambda: not any(map(psutil.pid_exists, pids)), "child and daemon to be gone")
        job.finish()


def peak_memory(pid: int) -> int:
    """Return the most memory that a process has held so far, in bytes."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


@fault(
    "worker",
    "floods stdout",
    noticed="when more than 8 MB wait to be shown",
    decision="the rank writes to its file and is never held up; the agent leaves out what it cannot show, and says so",
    lost="lines on the console; the rank's log file has them all",
)
def test_a_gigabyte_of_output_holds_nobody_up(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR) as job:
        slot = job.seats(0, 2)[1]
        job.trouble(1, "flood")
        job.until(lambda: not (job.folder / "trouble").exists(), "rank 1 to begin")
        job.another_step(2)
        agent = psutil.Process(job.agent_pid(node_of(slot)))
        assert peak_memory(agent.pid) < 150 << 20
        assert peak_memory(job.process.pid) < 300 << 20
        job.finish()
        assert len(job.events()) == 2, "nobody was taken for dead meanwhile"
        output = job.logs / "generation-1" / "rank-1" / "stdout.log"
        assert output.stat().st_size == 1 << 30
        output.unlink()
        console = (tmp_path / "console").read_text()
        assert f" bytes left out here; {output} has them)" in console
        assert len(console) < 200 << 20


@fault(
    "worker",
    "fills the disk",
    noticed="by the rank, whose print fails; by the agent when it starts one and finds less than 1 MB left",
    decision="restart in place; with the log directory full, ranks run on without logs, and a line says so",
    lost=f"{LOST}; what is printed from then on",
)
def test_a_full_log_directory_does_not_end_the_job(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    mount = f'mount -t tmpfs -o size=3m none {logs} && exec "$@"'
    with running(tmp_path, *PAIR, prefix=("unshare", "-rm", "sh", "-c", mount, "sh")) as job:
        before = job.seats(0, 2)
        job.trouble(1, "print")
        assert job.seats(1, 2) == before
        job.trouble(1, "print")
        job.until(lambda: not (job.folder / "trouble").exists(), "rank 1 to print")
        job.another_step(2)
        (job.folder / "finish").touch()
        assert job.ended() == 0, job.told()
        console = (tmp_path / "console").read_text()
        assert "No space left on device" in console
        assert f"[1] tlaunch: no space left in {logs}: what this rank prints is lost" in console
        assert "generation 3" not in console


@fault(
    "worker",
    "hang in a collective",
    noticed="by the others, after the timeout of the process group: torch gives NCCL 10 min and gloo 30",
    decision="restart in place of all ranks; the one that hangs is killed",
    lost=f"{LOST}; the timeout",
)
def test_a_rank_that_never_comes_to_a_collective_is_killed_when_the_others_give_up(tmp_path: Path) -> None:
    with running(tmp_path, *PAIR, arguments=(str(tmp_path / "work"), "--timeout", "3")) as job:
        before = job.seats(0, 2)
        hung = job.trace(1)[-1]["pid"]
        job.trouble(1, "hang")
        assert job.seats(1, 2) == before
        assert not psutil.pid_exists(hung)
        assert "Timed out" in first_cause(job)
        job.finish()


@HANG
def test_a_rank_that_all_others_wait_for_is_found_before_they_give_up(tmp_path: Path) -> None:
    with running(tmp_path, "--nodes", "2", "--gpus-per-node", "2", "--hang-timeout", "2") as job:
        before = job.seats(0, 4)
        job.goes_on(2.5, 4)  # it prints nothing all that time
        for generation, rank, how in ((1, 3, "hang"), (2, 1, "lock")):
            hung = job.trace(rank)[-1]["pid"]
            job.trouble(rank, how)
            assert job.seats(generation, 4) == before
            assert not psutil.pid_exists(hung)
            failure = job.events()[generation]["first_failure"]
            assert (failure["rank"], failure["hang"]) == (rank, True)
            others = "0-2" if rank == 3 else "0,2-3"
            assert f" in hang; ranks {others} wait for it in all_reduce" in failure["message"]
            assert "in misbehave" in failure["traceback"]
        job.finish()
        assert len(job.events()) == 4
        assert "Stack (most recent call last):" in (tmp_path / "console").read_text()


@HANG_OF_ALL
def test_ranks_that_all_wait_for_each_other_are_restarted(tmp_path: Path) -> None:
    script = tmp_path / "crossed.py"
    script.write_text(
        "import os, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    dist.recv(torch.zeros(1), 1 - dist.get_rank())\n"
    )
    with running(tmp_path, *PAIR, "--hang-timeout", "1", script=script) as job:
        assert job.ended() == 0, job.told()
        assert "all 2 ranks wait in collectives, so that the cause cannot be told" in first_cause(job)
