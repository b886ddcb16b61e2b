"""What the repository says about itself is true."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tlaunch
from tests.e2e import faults
from tlaunch.launcher.core.plan import Plan, Seat
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, Slot

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("launcher", "topology", "checkpoint", "conf")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
LONGEST_FILE = 400  # lines


def tracked(*patterns: str) -> list[Path]:
    """The files that git knows, links left out."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    paths = [ROOT / name for name in names if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    assert importlib.metadata.version("tlaunch") == version
    assert tlaunch.__version__ == version
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert version in headings


def test_the_console_script_starts_the_package() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="tlaunch")
    assert script.value == "tlaunch.__main__:main"
    assert (Path(sysconfig.get_path("scripts")) / "tlaunch").is_file()


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n" in text
    assert "Version 2.0, January 2004" in text
    assert re.search(r"Copyright \d{4} The tlaunch authors", text)
    assert PROJECT["project"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("room", ROOMS)
def test_the_links_lead_to_the_rooms(room: str) -> None:
    link = ROOT / ".src" / "tlaunch" / room
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / room, "an absolute link would break in every other clone"
    assert (link / "__init__.py").is_file()


# --- decisions and documents ----------------------------------------------------------------------------------------


def decisions() -> list[Path]:
    return sorted(path for path in (ROOT / "docs" / "adr").glob("*.md") if path.name != "README.md")


def test_no_two_decisions_have_one_number() -> None:
    """Gaps are well: a number may be taken for a decision that is still being written."""
    names = [path.name for path in decisions()]
    assert all(re.match(r"\d{4}-[a-z]", name) for name in names)
    assert len({name[:4] for name in names}) == len(names)


def test_every_decision_has_its_title_and_its_place_in_the_index() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    for path in decisions():
        title = path.read_text().splitlines()[0]
        assert re.match(rf"# (ADR )?{path.name[:4]}\W", title), f"{path.name} starts with {title!r}"
        assert f"({path.name})" in index, f"docs/adr/README.md does not list {path.name}"


@pytest.mark.parametrize("document", tracked("*.md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
    lost = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert lost == []


def test_the_page_on_failures_says_what_the_tests_prove() -> None:
    assert faults.PAGE.read_text() == faults.page(), "docs/failures.md is not up to date: run `make docs`"
    proven = {(row.component, row.fault) for row in faults.proofs()}
    required = {(component, fault) for component, names in faults.REQUIRED.items() for fault in names}
    assert required - proven == set(), "no test proves these"


def test_the_readme_names_only_targets_that_exist() -> None:
    named = set(re.findall(r"^\s*make ([a-z-]+)|`make ([a-z-]+)", README, re.MULTILINE))
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wanted = {a or b for a, b in named}
    assert {"demo", "test"} <= wanted <= targets


def test_the_readme_names_only_flags_that_exist() -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    told = "".join(
        subprocess.run(
            [sys.executable, "-m", "tlaunch", *words, "--help"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for words in ([], ["kill"])
    )
    options = r"(?<![\w-])--[a-z][a-z-]*"
    of_others = {"--steps"}  # the example's own
    assert set(re.findall(options, README)) - of_others <= set(re.findall(options, told))


def test_the_readme_s_policy_is_one() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    code = next(block for block in blocks if "tlaunch.Policy" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    policy = names["SameDomain"]()
    assert isinstance(policy, tlaunch.Policy)

    node = Node("n0", slots=2, rack="r0", domain="d0")
    machine = Machine((node, Node("n1", slots=1, rack="r0", domain="d0")))
    spec = JobSpec("job", nodes=2, spares=1, mesh=Mesh.flat(2))
    seats = tuple(Seat(rank, Slot("n0", rank), since=1) for rank in range(2))
    cluster = tlaunch.Cluster(spec, machine, frozenset({"n0", "n1"}), Plan(1, spec.mesh, seats))
    lost = tlaunch.Failure("slot", 1, Slot("n0", 1), "XID 79")
    assert policy.on_failure(lost, cluster) == tlaunch.Swap(1, to=Slot("n1", 0))


# --- packages -------------------------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[Requirement]:
    """All that a distribution needs here, directly and indirectly, from the metadata of what is installed."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield requirement
            yield from needed(requirement.name, frozenset(requirement.extras), seen)


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_what_is_shipped_imports_only_what_it_depends_on() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]}
    providers = importlib.metadata.packages_distributions()
    foreign = {
        name: path.relative_to(ROOT).as_posix()
        for path in tracked(".src/*.py", *(f"{room}/*.py" for room in ROOMS))
        for name in imported(path)
        if name not in sys.stdlib_module_names and name != "tlaunch"
    }
    lost = {
        name: path
        for name, path in foreign.items()
        if not declared & {canonicalize_name(distribution) for distribution in providers.get(name, ())}
    }
    assert lost == {}


def test_every_package_that_is_needed_has_a_tested_version() -> None:
    tested = pins()
    requirements = list(needed("tlaunch", frozenset({"dev"}), set()))
    # PyTorch's builds for GPUs bring packages that the build for CPUs does not have, each with its exact version.
    vendor = re.compile(r"nvidia-(?!ml-py)|triton|cuda-")
    lost = {
        req.name for req in requirements if canonicalize_name(req.name) not in tested and not vendor.match(req.name)
    }
    assert lost == set()
    outside = {
        str(req) for req in requirements if not req.specifier.contains(tested.get(canonicalize_name(req.name), "0"))
    }
    assert {text for text in outside if not vendor.match(text)} == set()


def test_tested_versions_hold_on_every_machine() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert re.findall(r"^(?!#)(?!\S+==[\w.]+$).+$", text, re.MULTILINE) == [], (
        "one exact public version a line, no hosts"
    )


# --- sources --------------------------------------------------------------------------------------------------------


def test_every_folder_with_python_is_type_checked() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in tracked("*.py")}
    mypy, pyright = PROJECT["tool"]["mypy"], PROJECT["tool"]["pyright"]
    assert folders - {"examples", ".src", *ROOMS} <= set(mypy["files"]), "the rooms are checked through .src"
    assert folders - {".src"} <= set(pyright["include"])
    examples = {path.relative_to(ROOT).parent.as_posix() for path in tracked("examples/*.py")}
    assert examples <= {place["root"] for place in pyright["executionEnvironments"]}
    assert "for example in examples/*/" in (ROOT / "Makefile").read_text()


def test_files_fit_on_a_few_screens() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in tracked("*.py")}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    # Not /home/user and the like in examples: a folder below a real home, a registry on a host of somebody's own.
    private = re.compile(r"/(?:home|Users)/(?!user\b)\w|/root/|/work/|(?:index-url|find-links)\s*[=\s]")
    found = []
    for path in tracked():
        if path.suffix in {".png", ".safetensors"}:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if private.search(line) and path != Path(__file__):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []
