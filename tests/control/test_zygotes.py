"""The agent's way to a zygote, and what happens when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from tlaunch.launcher.control import zygotes
from tlaunch.launcher.control.spawn import SpawnError
from tlaunch.launcher.control.timing import Timing
from tlaunch.launcher.control.zygotes import ZygoteSource, base_environment, zygote_process

ENV = base_environment(os.environ, slots=2)


def test_a_rank_that_is_alone_on_its_machine_keeps_all_threads() -> None:
    assert base_environment({}, slots=2)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in base_environment({}, slots=1)
    assert base_environment({"OMP_NUM_THREADS": "7"}, slots=1)["OMP_NUM_THREADS"] == "7"
    assert base_environment({"OMP_NUM_THREADS": "7"}, slots=2)["OMP_NUM_THREADS"] == "7"


def test_how_to_get_at_the_store_is_kept_from_ranks() -> None:
    env = {"TLAUNCH_ETCD": "host:1", "TLAUNCH_ETCD_PASSWORD": "secret", "TLAUNCH_ETCD_CACERT": "ca.pem"}
    assert base_environment({**env, "PATH": "/bin"}, slots=2) == base_environment({"PATH": "/bin"}, slots=2)


async def test_a_zygote_that_dies_is_replaced_and_its_standbys_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygotes, "YOUNG", 0.0)
    told: list[str] = []
    socket = str(tmp_path / "zygote")
    async with zygote_process(socket, ENV, tmp_path / "log", told.append):
        source = ZygoteSource(socket, ENV, tmp_path / "unused", Timing())
        first = await source.get()
        standby = await first.standby()
        zygote = psutil.Process(standby.pid).parent()
        assert zygote is not None
        zygote.kill()
        await first.lost.wait()
        second = await source.get()
        assert second is not first
        assert not standby.ended.done()
        another = await second.standby()
        assert another.pid != standby.pid
        standby.kill()
        await standby.ended
        await source.close()
    assert told == ["the zygote has ended with exit code -9: it said nothing"]


async def test_a_zygote_that_cannot_start_is_given_up_and_its_last_words_are_told(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so is missing')")
    told: list[str] = []
    socket = str(tmp_path / "zygote")
    async with zygote_process(socket, {**ENV, "PYTHONPATH": str(tmp_path)}, tmp_path / "log", told.append):
        source = ZygoteSource(socket, ENV, tmp_path / "unused", Timing())
        with pytest.raises(SpawnError):
            await (await source.get()).standby()
        with pytest.raises(SpawnError):
            await source.get()
        await source.close()
    assert told == ["the zygote has ended with exit code 1: ImportError: libcudart.so is missing"]


async def test_a_zygote_that_cannot_be_started_again_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygotes, "YOUNG", 0.0)
    told: list[str] = []
    last = asyncio.Event()

    def tell(what: str) -> None:
        told.append(what)
        if len(told) == 2:
            last.set()

    folder = tmp_path / "sockets"
    folder.mkdir()
    async with zygote_process(str(folder / "zygote"), ENV, tmp_path / "log", tell):
        (zygote,) = (
            child for child in psutil.Process().children() if "tlaunch.launcher.elastic.zygote" in child.cmdline()
        )
        folder.rename(tmp_path / "gone")
        zygote.kill()
        async with asyncio.timeout(30):
            await last.wait()
    assert told == [
        "the zygote has ended with exit code -9: it said nothing",
        "the zygote cannot be started again: [Errno 2] No such file or directory",
    ]


async def test_an_agent_without_a_shared_zygote_has_its_own(tmp_path: Path) -> None:
    source = ZygoteSource(None, ENV, tmp_path / "log", Timing())
    standby = await (await source.get()).standby()
    await source.close()
    assert (await standby.ended).signal == signal.SIGKILL
