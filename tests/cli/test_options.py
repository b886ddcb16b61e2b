from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tlaunch.errors import InputError
from tlaunch.launcher.cli import app, config
from tlaunch.launcher.cli.app import parse
from tlaunch.launcher.cli.flags import flags_of
from tlaunch.launcher.cli.options import KillOptions, RunOptions, StatusOptions, StopOptions


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """What a run was asked for, in place of running it."""
    seen: list[RunOptions] = []

    def take(options: RunOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr("tlaunch.launcher.cli.run.run", take)
    return seen


def read(given: list[RunOptions], *words: str) -> RunOptions:
    assert parse(words)() == 0
    return given.pop()


def test_every_flag_is_read(given: list[RunOptions]) -> None:
    words = (
        "--nodes 18 --gpus-per-node 4 --spares 8 --topology nvl72 --mesh dp=8,tp=8 --etcd a:1,b:2 --etcd-user me "
        "--etcd-cacert ca --etcd-cert cert --etcd-key key --job-id gpt --max-restarts 5 --swap-scope any --min-world 8 "
        "--policy my:Policy --config conf.yaml --log-dir logs --start fresh -m pkg.train"
    )
    assert read(given, *words.split()) == RunOptions(
        nodes=18,
        gpus_per_node=4,
        spares=8,
        topology="nvl72",
        mesh="dp=8,tp=8",
        etcd="a:1,b:2",
        etcd_user="me",
        etcd_cacert="ca",
        etcd_cert="cert",
        etcd_key="key",
        job_id="gpt",
        max_restarts=5,
        swap_scope="any",
        min_world=8,
        policy="my:Policy",
        config="conf.yaml",
        log_dir="logs",
        start="fresh",
        module=True,
        script="pkg.train",
    )


def test_nothing_is_set_that_was_not_given(given: list[RunOptions]) -> None:
    assert read(given, "train.py") == RunOptions(script="train.py")


@pytest.mark.parametrize(
    "rest",
    [
        ["--nodes", "7"],
        ["--help"],
        ["--version"],
        ["-m", "x"],
        ["--unknown", "--", "-x"],
        ["--", "--nodes"],
        ["status"],
        ["a b", "", "é", "--lr=0.1"],
    ],
)
def test_what_follows_the_script_is_its_own(given: list[RunOptions], rest: list[str]) -> None:
    assert read(given, "--nodes=2", "train.py", *rest) == RunOptions(nodes=2, script="train.py", args=tuple(rest))


def test_two_dashes_end_our_own_flags(given: list[RunOptions]) -> None:
    assert read(given, "--nodes", "2", "--", "--strange.py", "-x") == RunOptions(
        nodes=2, script="--strange.py", args=("-x",)
    )


@pytest.mark.parametrize("words", [["./status"], ["--nodes", "2", "status"], ["-m", "stop"], ["--", "kill"]])
def test_only_a_first_word_is_a_command(given: list[RunOptions], words: list[str]) -> None:
    assert read(given, *words).script == words[-1]


@pytest.mark.parametrize(
    ("words", "function", "options"),
    [
        (["status"], "status", StatusOptions()),
        (["status", "gpt", "--json"], "status", StatusOptions(job="gpt", json=True)),
        (["stop", "--etcd", "a:1", "gpt"], "stop", StopOptions(job="gpt", etcd="a:1")),
        (["kill", "--rank", "5", "--job-id", "gpt"], "kill", KillOptions(rank=5, job_id="gpt")),
    ],
)
def test_commands_get_their_options(
    monkeypatch: pytest.MonkeyPatch, words: list[str], function: str, options: object
) -> None:
    seen: list[object] = []

    def take(given: object) -> int:
        seen.append(given)
        return 3

    monkeypatch.setattr(f"tlaunch.launcher.cli.commands.{function}", take)
    assert parse(words)() == 3
    assert seen == [options]


def test_each_flag_is_spelled_one_way() -> None:
    names = [flag.name for flag in flags_of(RunOptions).values()]
    assert len(set(names)) == len(names)
    assert not [name for name in names if "_" in name]


# --- the configuration file ----------------------------------------------------------------------------------------


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "conf.yaml"


def test_a_file_can_hold_every_option(conf: Path) -> None:
    keys = [flag.key for flag in flags_of(RunOptions).values() if flag.in_file]
    values = dict.fromkeys(keys, "1") | {
        "swap-scope": "node",
        "start": "fork",
        "strict": "true",
        "args": "[--steps, 30]",
    }
    conf.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    read_back = config.load("conf.yaml")
    unset = {name for name in RunOptions.__dataclass_fields__ if not getattr(read_back, name)}
    assert unset == {"config", "module", "version", "help"}
    assert read_back.args == ("--steps", "30")
    assert read_back.nodes == 1
    assert read_back.job_id == "1"


def test_flags_win_over_the_file(conf: Path) -> None:
    conf.write_text("nodes: 3\nspares: 2\nscript: train.py\nargs: [--steps, 5]\n")
    flags = RunOptions(nodes=4, spares=0)
    assert flags.over(config.load("conf.yaml")) == RunOptions(
        nodes=4, spares=0, script="train.py", args=("--steps", "5")
    )


def test_a_script_does_not_get_the_arguments_of_another(conf: Path) -> None:
    conf.write_text("nodes: 3\nmodule: pkg.train\nargs: [--steps, 5]\n")
    from_file = config.load("conf.yaml")
    assert RunOptions().over(from_file) == RunOptions(nodes=3, script="pkg.train", module=True, args=("--steps", "5"))
    assert RunOptions(script="other.py").over(from_file) == RunOptions(nodes=3, script="other.py")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("nodes: 3\ngpu-per-node: 4\n", "conf.yaml:2: unknown key 'gpu-per-node'; did you mean 'gpus-per-node'?"),
        ("gpus_per_node: 4\n", "conf.yaml:1: unknown key 'gpus_per_node'; did you mean 'gpus-per-node'?"),
        ("nodes: 3\nnodes: 4\n", "conf.yaml:2: the key 'nodes' stands twice, first on line 1"),
        ("# two\n\nnodes: two\n", "conf.yaml:3: nodes: expected a whole number of at least 1, got 'two'"),
        ("nodes: yes\n", "conf.yaml:1: nodes: expected a whole number of at least 1, got 'yes'"),
        ("nodes: [3]\n", "conf.yaml:1: nodes: expected one value, got a list"),
        ("nodes:\n", "conf.yaml:1: nodes: expected one value, got nothing"),
        ("mesh: {dp: 8}\n", "conf.yaml:1: mesh: expected one value, got a mapping"),
        ("swap-scope: world\n", "conf.yaml:1: swap-scope: expected node, domain, rack or any, got 'world'"),
        ("args: --steps 30\n", "conf.yaml:1: args: expected a list such as [--steps, 30], got '--steps 30'"),
        ("args: [[1]]\n", "conf.yaml:1: args[0]: expected a word, got a list"),
        ("script: a.py\nmodule: b\n", "conf.yaml:2: module: stands beside script; expected only one of them"),
        ("- nodes\n", "conf.yaml:1: expected options such as 'nodes: 4', got a list"),
        ("", "conf.yaml: empty; expected a mapping"),
        ("nodes: [\n", "conf.yaml:2: not YAML: while parsing a flow node, "),
    ],
)
def test_a_wrong_file_is_one_line(conf: Path, content: str, line: str) -> None:
    conf.write_text(content)
    with pytest.raises(InputError) as caught:
        config.load("conf.yaml")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("path", "reason"), [("nosuch", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read(conf: Path, path: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^--config {path}: {reason}; expected a YAML file$"):
        config.load(path)


def test_a_key_that_nothing_is_like_lists_what_there_is(conf: Path) -> None:
    conf.write_text("config: other.yaml\n")
    with pytest.raises(InputError, match=r"^conf.yaml:1: unknown key 'config'; expected one of nodes, .*, module$"):
        config.load("conf.yaml")


def test_the_help_page_is_whole_in_both_forms(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "COLUMNS", "100")
    app.show_help()
    plain = capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    app.show_help()
    boxes = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    words = [flag.name for flag in flags_of(RunOptions).values() if not flag.is_positional]
    words += ["status", "stop", "drain", "kill", "topology", "SCRIPT|COMMAND [ARGS]..."]
    assert [word for word in words if word not in plain] == []
    assert [word for word in words if word not in boxes] == []
    assert "╭─ Machine ─" in boxes
    assert "(default: 1)" in plain
    assert "(default: 1)" in boxes  # square brackets would be markup
