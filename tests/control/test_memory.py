"""The kernel's count of what it has killed for want of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlaunch.launcher.control import memory
from tlaunch.launcher.control.memory import OomKills


def test_there_is_a_counter_on_this_machine() -> None:
    assert OomKills.look() is not None


@pytest.mark.parametrize(
    "text",
    ["low 0\nhigh 3\nmax 0\noom 1\noom_kill 2\noom_group_kill 0\n", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"],
)
def test_what_a_rise_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    counter = tmp_path / "events"
    counter.write_text(text)
    monkeypatch.setattr(memory, "_candidates", lambda: iter([tmp_path / "missing", counter]))
    before = OomKills.look()
    assert before is not None
    assert before == OomKills(counter, 2)
    assert before.since(before) is None
    assert before.since(None) is None
    counter.write_text(text.replace("oom_kill 2", "oom_kill 5"))
    now = OomKills.look()
    assert now is not None
    assert now.since(before) == f"out of memory: the kernel has killed 3 for it, says {counter}"
