"""The parts of examples/gpt: which rank sees which sample, the weight of a share, and checkpoints under kill -9."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples.conftest import EXAMPLES


@given(step=st.integers(0, 10**6), batch=st.integers(1, 200), world_size=st.integers(1, 130))
def test_the_ranks_together_see_each_sample_of_a_step_once_for_any_world_size(
    gpt: SimpleNamespace, step: int, batch: int, world_size: int
) -> None:
    shares = [gpt.data.share(step, batch, rank, world_size) for rank in range(world_size)]

    assert sorted(sample for share in shares for sample in share) == list(range(step * batch, (step + 1) * batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_epoch_visits_every_window_once_and_the_next_one_in_another_order(
    gpt: SimpleNamespace, tmp_path: Path
) -> None:
    corpus = gpt.data.Corpus(_files(tmp_path, [41, 0, 10, 11, 95]), block=10)
    first, second = (
        [corpus.window(sample) for sample in range(start, start + len(corpus))] for start in (0, len(corpus))
    )

    expected = [("0", 0), ("0", 10), ("0", 20), ("0", 30), ("3", 0), *(("4", offset) for offset in range(0, 90, 10))]
    assert sorted((path.name, offset) for path, offset in first) == expected
    assert Counter(second) == Counter(first)
    assert second != first


def test_targets_are_the_inputs_one_byte_later(gpt: SimpleNamespace, tmp_path: Path) -> None:
    [path] = _files(tmp_path, [64])
    corpus = gpt.data.Corpus([path], block=10)
    inputs, targets = corpus.batch([3, 14])

    assert inputs.shape == targets.shape == (2, 10)
    for row, sample in enumerate([3, 14]):
        _, offset = corpus.window(sample)
        assert bytes(inputs[row].tolist()) == path.read_bytes()[offset : offset + 10]
        assert bytes(targets[row].tolist()) == path.read_bytes()[offset + 1 : offset + 11]


def test_a_corpus_without_one_window_is_refused(gpt: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file of more than 64 bytes among the 2 files"):
        gpt.data.Corpus(_files(tmp_path, [64, 3]), block=64)


def test_the_standard_library_is_a_corpus(gpt: SimpleNamespace) -> None:
    corpus = gpt.data.Corpus.standard_library(64)

    assert len(corpus) > 10_000
    assert corpus.batch(range(5))[0].shape == (5, 64)


def test_the_shares_of_all_ranks_add_up_to_the_gradient_of_the_whole_batch(gpt: SimpleNamespace) -> None:
    """Of 5 ranks, two see two samples, one sees one, and two see none: more ranks than samples work as well."""
    torch = pytest.importorskip("torch")
    corpus = gpt.data.Corpus.standard_library(8)
    model = gpt.model.GPT(gpt.model.GPTConfig(block=8, width=16))

    def gradient(samples: range | list[int]) -> list[object]:
        inputs, targets = corpus.batch(samples)
        loss = gpt.train.loss_share(model(inputs), targets, batch=5)
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    whole = gradient(range(5))
    parts = [gradient(share) for share in ([0, 3], [1, 4], [2], [], [])]
    for expected, *shares in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(shares), expected)


def test_the_newest_two_checkpoints_are_kept_and_the_newest_is_loaded(gpt: SimpleNamespace, tmp_path: Path) -> None:
    assert gpt.checkpoint.load_newest(tmp_path / "none-yet") is None
    for step in (90, 100, 1000):
        gpt.checkpoint.save(tmp_path, step, {"model": {"name": f"at {step}"}})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100.pt", "step-00001000.pt"]
    assert gpt.checkpoint.load_newest(tmp_path) == {"step": 1000, "model": {"name": "at 1000"}}


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_off_is_passed_over(
    gpt: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], left: float
) -> None:
    good = gpt.checkpoint.save(tmp_path, 10, {})
    torn = gpt.checkpoint.save(tmp_path, 20, {"optimizer": {"state": {i: [0.5] * 20 for i in range(50)}}})
    torn.write_bytes(torn.read_bytes()[: int(left * torn.stat().st_size)])

    assert gpt.checkpoint.load_newest(tmp_path) == {"step": 10}
    assert f"checkpoint {torn} cannot be read" in capsys.readouterr().out
    good.unlink()
    assert gpt.checkpoint.load_newest(tmp_path) is None


def test_clear_removes_checkpoints_and_nothing_else(gpt: SimpleNamespace, tmp_path: Path) -> None:
    gpt.checkpoint.save(tmp_path, 10, {})
    (tmp_path / "step-00000020.tmp").touch()
    (tmp_path / "notes.txt").touch()
    gpt.checkpoint.clear(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


_WRITER = """
import itertools, pathlib, sys
import checkpoint, torch
for step in itertools.count(1):
    checkpoint.save(pathlib.Path(sys.argv[1]), step, {"weights": torch.full((200_000,), float(step))})
    print(step, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_the_last_checkpoint_it_announced(
    gpt: SimpleNamespace, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    with subprocess.Popen(command, cwd=EXAMPLES / "gpt", stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        assert [int(writer.stdout.readline()) for _ in range(7)] == list(range(1, 8))
        writer.kill()
        announced = 7 + len(writer.stdout.readlines())

    state = gpt.checkpoint.load_newest(tmp_path)
    assert announced <= state["step"] <= announced + 1
    assert set(state["weights"].tolist()) == {float(state["step"])}


def test_a_run_without_an_id_is_fresh_until_it_is_restarted(gpt: SimpleNamespace) -> None:
    environment = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    assert gpt.train.Run.from_environment({}).is_fresh
    assert gpt.train.Run.from_environment({**environment, "TORCHELASTIC_RUN_ID": "none"}).is_fresh
    assert not gpt.train.Run.from_environment({**environment, "TORCHELASTIC_RESTART_COUNT": "1"}).is_fresh
    assert not gpt.train.Run.from_environment({**environment, "TORCHELASTIC_RUN_ID": "job-7"}).is_fresh


def test_a_wrong_option_is_refused_in_one_line(
    gpt: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--log-every", "0"])
    with pytest.raises(SystemExit, match="2"):
        gpt.train.parse_options()
    assert capsys.readouterr().err.splitlines()[-1] == "train.py: error: --log-every must be at least 1"


def _files(folder: Path, sizes: list[int]) -> list[Path]:
    paths = [folder / str(number) for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(i * 7 % 251 for i in range(size)))
    return paths
