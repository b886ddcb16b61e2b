"""Every mistake of the user is one exact line and exit code 2, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Tlaunch

USAGE = "expected tlaunch [OPTIONS] SCRIPT [ARGS...], see tlaunch --help"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        # the words themselves
        ("", f"no script given; {USAGE}"),
        ("--nodes 2", f"no script given; {USAGE}"),
        ("-m", f"no module given; {USAGE}"),
        ("--spaers 3 train.py", "unknown flag --spaers; did you mean --spares?"),
        ("--spaers=3 train.py", "unknown flag --spaers; did you mean --spares?"),
        ("-spares 3 train.py", "unknown flag -spares; did you mean --spares?"),
        ("--nproc-per-node 3 train.py", "unknown flag --nproc-per-node; did you mean --gpus-per-node?"),
        ("--frobnicate train.py", "unknown flag --frobnicate; see tlaunch --help"),
        ("-x train.py", "unknown flag -x; see tlaunch --help"),
        ("--nodes", "option '--nodes' requires an argument"),
        # numbers and choices
        ("--nodes two train.py", "--nodes: expected a whole number of at least 1, got 'two'"),
        ("--nodes 0 train.py", "--nodes: expected a whole number of at least 1, got '0'"),
        ("--nodes 1.5 train.py", "--nodes: expected a whole number of at least 1, got '1.5'"),
        ("--nodes ² train.py", "--nodes: expected a whole number of at least 1, got '²'"),
        ("--nodes 1_0 train.py", "--nodes: expected a whole number of at least 1, got '1_0'"),
        (
            "--spares -1 train.py",
            (
                "--spares: expected a number of GPUs such as 8, or 8/rack for so many in each rack, "
                "or 2n for whole nodes, got '-1'"
            ),
        ),
        ("--spares 8/row train.py", "--spares: expected one of node, domain, rack, pod after the slash, got '8/row'"),
        ("--spares 1n/node train.py", "--spares: expected one of domain, rack, pod after the slash, got '1n/node'"),
        (
            "--nodes 2 --gpus-per-node 2 --spares 2n train.py",
            "--spares 2n: the machine has 4 slots (2 nodes x 2); that is 4; expected fewer",
        ),
        (
            "--nodes 2 --gpus-per-node 2 --mesh dp=2,tp=2@row train.py",
            (
                "mesh 'dp=2,tp=2@row': 'tp=2@row': 'row' is no level of the machine; "
                "expected one of node, domain, rack, pod, as in tp=8@domain"
            ),
        ),
        (
            "--nodes 2 --gpus-per-node 2 --mesh tp=4@domain --strict train.py",
            (
                "mesh tp=4@domain: 1 of 1 group of tp=4 cannot be in one NVLink domain: "
                "ranks 0-3 are in node-00, node-01"
            ),
        ),
        ("--swap-scope world train.py", "--swap-scope: expected node, domain, rack or any, got 'world'"),
        ("--start warm train.py", "--start: expected fork or fresh, got 'warm'"),
        # what to run
        ("trian.py", "no such script: trian.py; did you mean train.py?"),
        ("no/such.py", "no such script: no/such.py; there is no directory no"),
        ("zzz", "no such script: zzz"),
        (".", "script . is a directory; expected a Python file"),
        ("-m nosuch.module", "no module named nosuch.module, neither here nor installed"),
        ("-m json.nosuch", "no module named json.nosuch, neither here nor installed"),
        ("-m json.decoder.nosuch", "no module named json.decoder.nosuch, neither here nor installed"),
        ("-m ./train.py", "no module named ./train.py, neither here nor installed"),
        ("-m xml", "module xml is a package without a __main__; expected a module that can be run"),
        # the machine and the mesh
        (
            "--nodes 2 --gpus-per-node 2 --spares 4 train.py",
            "--spares 4: the machine has 4 slots (2 nodes x 2); expected at most 3",
        ),
        (
            "--gpus-per-node 1 --spares 1 train.py",
            "--spares 1: the machine has 1 slot (1 node x 1); expected at most 0",
        ),
        ("--mesh dp train.py", "mesh 'dp': 'dp' is not NAME=SIZE, such as dp=8"),
        (
            "--nodes 18 --gpus-per-node 4 --spares 9 --mesh dp=8,tp=8 train.py",
            (
                "--mesh dp=8,tp=8: needs 64 ranks, but 72 slots (18 nodes x 4) less 9 spares leave 63; "
                "expected --spares 8, or a mesh of 63"
            ),
        ),
        (
            "--nodes 2 --gpus-per-node 4 --spares 2 --mesh dp=8,tp=2 train.py",
            (
                "--mesh dp=8,tp=2: needs 16 ranks, but 8 slots (2 nodes x 4) less 2 spares leave 6; "
                "expected --mesh dp=3,tp=2"
            ),
        ),
        (
            "--nodes 2 --gpus-per-node 2 --mesh dp=2,tp=3 train.py",
            (
                "--mesh dp=2,tp=3: needs 6 ranks, but 4 slots (2 nodes x 2) less 0 spares leave 4; "
                "expected a mesh of 4, or 2 slots more"
            ),
        ),
        ("--gpus-per-node 4 --min-world 5 train.py", "--min-world 5: the job has 4 ranks; expected at most that many"),
        (
            "--topology nosuch train.py",
            "'nosuch' is neither a file nor a shipped topology; expected one of hgx, local, nvl72",
        ),
        # names
        (
            "--job-id a/b train.py",
            "--job-id 'a/b': expected at most 128 letters, digits, '.', '_' and '-', the first a letter or digit",
        ),
        (
            "--job-id .. train.py",
            "--job-id '..': expected at most 128 letters, digits, '.', '_' and '-', the first a letter or digit",
        ),
        ("--log-dir train.py train.py", "--log-dir train.py: cannot make the directory: File exists"),
        # the policy
        ("--policy Mine train.py", "--policy 'Mine': expected MODULE:CLASS, such as my_policy:MyPolicy"),
        (
            "--policy nosuch:Mine train.py",
            "--policy nosuch:Mine: importing nosuch failed: ModuleNotFoundError: No module named 'nosuch'",
        ),
        ("--policy json:Mine train.py", "--policy json:Mine: module json has no Mine"),
        # the store
        (
            "--etcd nowhere train.py",
            (
                "bad etcd endpoint 'nowhere'; expected host:port, http://host:port or https://host:port, "
                "separated by commas"
            ),
        ),
        ("--etcd a:1 --etcd-cacert x.pem train.py", "--etcd-cacert: no such file x.pem; expected a PEM file"),
        # the commands
        ("status --jsn", "unknown flag --jsn; did you mean --json?"),
        ("status", "no job is running here as this user; for one that uses another etcd give --etcd"),
        ("stop gpt", "no job 'gpt' is running here as this user; for one that uses another etcd give --etcd"),
        ("drain", "drain: expected a node, or a GPU such as node-03/gpu-2"),
        ("kill", "kill: expected one of --rank R, --gpu NODE/gpu-I and --node NODE"),
        ("kill --rank 1 --node a", "kill: expected one of --rank R, --gpu NODE/gpu-I and --node NODE"),
        ("kill --rank one", "--rank: expected a whole number of at least 0, got 'one'"),
        ("kill one", "got unexpected extra argument(s) (one)"),
        ("topology shwo", "no such command 'shwo'. Did you mean 'show'?"),
        ("topology show", "topology: expected a YAML file, or a known name such as nvl72"),
    ],
)
def test_one_line(tlaunch: Tlaunch, here: Path, words: str, line: str) -> None:
    code, out, err = tlaunch(*words.split())
    assert (err, out) == (f"tlaunch: {line}\n", "")
    assert code == 2
    assert [entry.name for entry in here.iterdir()] == ["train.py"]


def test_the_nearest_script_is_looked_for_beside_it(tlaunch: Tlaunch, here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "train_gpt.py").touch()
    assert (
        tlaunch("sub/train_gtp.py")[2] == "tlaunch: no such script: sub/train_gtp.py; did you mean sub/train_gpt.py?\n"
    )


def test_a_policy_that_is_none(tlaunch: Tlaunch, here: Path) -> None:
    (here / "my_policy_a.py").write_text("class Mine: pass\nraises = 1\n")
    _, _, err = tlaunch("--policy", "my_policy_a:Mine", "train.py")
    assert err.startswith("tlaunch: --policy my_policy_a:Mine: expected a subclass of tlaunch.Policy, found ")
    assert err.count("\n") == 1


def test_a_policy_that_raises_is_one_line(tlaunch: Tlaunch, here: Path) -> None:
    (here / "my_policy_b.py").write_text("raise ValueError('first\\nsecond')\n")
    code, _, err = tlaunch("--policy", "my_policy_b:Mine", "train.py")
    assert err == "tlaunch: --policy my_policy_b:Mine: importing my_policy_b failed: ValueError: first\n"
    assert code == 2


def test_a_password_without_a_user(tlaunch: Tlaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLAUNCH_ETCD_PASSWORD", "secret")
    code, _, err = tlaunch("--etcd", "localhost:2379", "train.py")
    assert err == "tlaunch: an etcd password is given but no user: use --etcd-user or TLAUNCH_ETCD_USER\n"
    assert code == 2


def test_a_topology_file_that_is_wrong(tlaunch: Tlaunch, here: Path) -> None:
    (here / "rack.yaml").write_text("gpus: 4\nracks:\n  a: n-[1-2]\n  b: n-[2-3]\n")
    code, _, err = tlaunch("--topology", "rack.yaml", "--nodes", "3", "train.py")
    assert err.startswith("tlaunch: rack.yaml:4:")
    assert err.count("\n") == 1
    assert code == 2


def test_more_nodes_than_the_topology_has(tlaunch: Tlaunch, here: Path) -> None:
    (here / "rack.yaml").write_text("gpus: 4\nracks:\n  a: n-[1-2]\n")
    code, _, err = tlaunch("--topology", "rack.yaml", "--nodes", "3", "train.py")
    assert err == "tlaunch: rack.yaml: describes 2 nodes, but the job asks for 3; expected --nodes 2 or fewer\n"
    assert code == 2


@pytest.mark.parametrize(("words", "line"), [(["--nodes", "x", "train.py"], b"--nodes: "), (["trian.py"], b"no such ")])
def test_the_real_program_says_so_too(here: Path, words: list[str], line: bytes) -> None:
    done = subprocess.run([sys.executable, "-m", "tlaunch", *words], capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"tlaunch: " + line)
    assert done.stderr.count(b"\n") == 1


def test_whoever_closes_our_output_gets_no_traceback(here: Path) -> None:
    end, other = os.pipe()
    os.close(end)
    done = subprocess.run(
        [sys.executable, "-m", "tlaunch", "--version"], stdout=other, stderr=subprocess.PIPE, check=False, timeout=30
    )
    os.close(other)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_bug_of_ours_is_one_line_with_the_file_that_has_the_rest(
    tlaunch: Tlaunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("tlaunch.launcher.hosts.registry.find", broken)
    code, _, err = tlaunch("stop")
    line, _, file = err.strip().rpartition(" ")
    assert line == "tlaunch: internal error: KeyError: 'oops'; the traceback is in"
    assert code == 1
    assert 'raise KeyError("oops")' in Path(file).read_text()
    Path(file).unlink()
