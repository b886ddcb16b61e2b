from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tlaunch.errors import InputError
from tlaunch.launcher.cli.options import RunOptions
from tlaunch.launcher.cli.request import build, mesh_of
from tlaunch.launcher.cli.script import check_module
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.description import default_machine
from tlaunch.topology.discover.report import Coordinates, Report
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Node

pytestmark = pytest.mark.usefixtures("here")


def test_the_defaults(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlaunch.topology.discover.nvml.gpu_count", lambda: 0)
    request = build(RunOptions(script="train.py", args=("--steps", "3")), {})
    assert re.fullmatch(r"train-[0-9a-f]{6}", request.spec.job_id)
    assert request.spec == JobSpec(
        job_id=request.spec.job_id,
        nodes=1,
        spares=0,
        mesh=Mesh.flat(1),
        script="train.py",
        max_restarts=3,
        swap_scope="rack",
        min_world=1,
    )
    assert request.machine == default_machine(1, 1)
    assert request.argv == ("train.py", "--steps", "3")
    assert (request.module, request.start, request.policy, request.endpoints) == (False, "fork", None, None)
    assert request.log_dir == here / "tlaunch-logs" / request.spec.job_id
    assert request.log_dir.is_dir()


def test_everything_given(here: Path) -> None:
    given = RunOptions(
        nodes=2,
        gpus_per_node=4,
        spares=2,
        mesh="dp=3,tp=2",
        job_id="gpt.1",
        log_dir="logs/here",
        start="fresh",
        max_restarts=0,
        swap_scope="any",
        min_world=4,
        policy="tlaunch.launcher.core.policy:Policy",
        etcd="http://a:1,http://b:2",
        script="train.py",
    )
    request = build(given, {})
    assert request.spec == JobSpec("gpt.1", 2, 2, Mesh.parse("dp=3,tp=2"), "train.py", 0, "any", 4)
    assert (request.start, request.policy) == ("fresh", "tlaunch.launcher.core.policy:Policy")
    assert request.log_dir == here / "logs" / "here"
    assert request.endpoints is not None
    assert request.endpoints.hosts == ("a:1", "b:2")


def test_the_gpus_of_this_node_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlaunch.topology.discover.nvml.gpu_count", lambda: 8)
    assert len(build(RunOptions(script="train.py"), {}).machine.slots) == 8
    assert len(build(RunOptions(script="train.py", gpus_per_node=2), {}).machine.slots) == 2


def test_auto_asks_this_machine_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Report("nvml", "x", {"gb01": Coordinates(domain="c.1", slots=4)})
    monkeypatch.setattr("tlaunch.topology.discover.nvml.report", lambda *_: known)
    monkeypatch.setenv("NODE_NAME", "gb01")
    monkeypatch.setenv("TLAUNCH_LABELS", "topology.kubernetes.io/rack=r7")
    request = build(RunOptions(script="train.py", nodes=2, topology="auto"), {})
    assert request.discover
    assert request.machine.nodes == tuple(Node(name, 4, "c.1", "r7") for name in ("node-00", "node-01"))
    request = build(RunOptions(script="train.py", gpus_per_node=2, topology="auto"), {})
    assert [node.slots for node in request.machine] == [2]


def test_auto_on_a_machine_that_knows_nothing_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlaunch.topology.discover.nvml.report", lambda *_: Report("nvml", "x"))
    monkeypatch.setenv("PATH", "/nowhere")
    request = build(RunOptions(script="train.py", nodes=2, topology="auto"), {})
    assert request.machine == default_machine(2, 1)


def test_without_a_topology_nothing_is_discovered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlaunch.topology.discover.nvml.gpu_count", lambda: 0)
    monkeypatch.setenv("TLAUNCH_LABELS", "nonsense")
    assert not build(RunOptions(script="train.py"), {}).discover


def test_what_the_topology_says_comes_before_the_gpus_of_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlaunch.topology.discover.nvml.gpu_count", lambda: 8)
    request = build(RunOptions(script="train.py", nodes=18, topology="nvl72", spares=8, mesh="dp=8,tp=8"), {})
    assert len(request.machine.slots) == 72
    assert request.spec.mesh.size == 64
    assert len({node.domain for node in request.machine}) == 1


def test_a_job_may_shrink_to_one_replica_by_default() -> None:
    assert build(RunOptions(script="train.py", gpus_per_node=8, mesh="dp=2,pp=2,tp=2"), {}).spec.min_world == 4
    assert build(RunOptions(script="train.py", gpus_per_node=8, mesh="pp=2,tp=4"), {}).spec.min_world == 8


def test_the_environment_names_the_etcd() -> None:
    env = {"TLAUNCH_ETCD": "https://a:1", "TLAUNCH_ETCD_USER": "me", "TLAUNCH_ETCD_PASSWORD": "secret"}
    endpoints = build(RunOptions(script="train.py"), env).endpoints
    assert endpoints is not None
    assert (endpoints.hosts, endpoints.secure, endpoints.user, endpoints.password) == (("a:1",), True, "me", "secret")


@pytest.mark.parametrize(
    ("script", "start"),
    [("my train.py", "my-train-"), ("__init__.py", "init__-"), ("été.py", "t-"), ("---.py", "job-"), ("9.sh", "9-")],
)
def test_a_job_id_is_made_from_any_script(here: Path, script: str, start: str) -> None:
    (here / script).touch()
    assert build(RunOptions(script=script), {}).spec.job_id.startswith(start)


def test_the_job_of_a_module_is_named_after_its_last_part() -> None:
    request = build(RunOptions(script="json.tool", module=True), {})
    assert request.module
    assert request.spec.job_id.startswith("tool-")


def test_two_jobs_get_two_ids() -> None:
    given = RunOptions(script="train.py")
    assert build(given, {}).spec.job_id != build(given, {}).spec.job_id


def test_nothing_is_written_before_everything_has_been_checked(here: Path) -> None:
    with pytest.raises(InputError):
        build(RunOptions(script="train.py", etcd="nowhere"), {})
    assert not (here / "tlaunch-logs").exists()


def test_a_script_that_cannot_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"^cannot read the script train.py: Permission denied$"):
        build(RunOptions(script="train.py"), {})


def test_a_mesh_without_replicas_is_not_resized() -> None:
    with pytest.raises(InputError, match=r"leave 8; expected --spares 4, or a mesh of 8$"):
        mesh_of("tp=4", default_machine(2, 4), 0)


# --- modules ---------------------------------------------------------------------------------------------------------


def test_a_module_is_found_without_importing_its_package(here: Path) -> None:
    package = here / "heavy_package_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    (package / "train.py").touch()
    path = list(sys.path)
    check_module("heavy_package_of_a_test.train")
    with pytest.raises(InputError, match="is a package without a __main__"):
        check_module("heavy_package_of_a_test")
    (package / "__main__.py").touch()
    check_module("heavy_package_of_a_test")
    assert sys.path == path
    assert package.name not in sys.modules


@pytest.mark.parametrize("name", ["json.tool", "timeit", "tlaunch", "torch.distributed.run"])
def test_installed_modules_are_found(name: str) -> None:
    check_module(name)


@pytest.mark.parametrize("name", ["", ".", "json.", ".tool", "json..tool", "a b", "train.py"])
def test_what_is_no_module(name: str) -> None:
    with pytest.raises(InputError, match=r"^no module named "):
        check_module(name)
