"""A disk that remembers what was done to it, and shows what is left when the power fails at any moment.

``Recorder`` does everything on a real disk too, through the steps of ``LocalFiles``. ``after`` makes a folder as it may
be found after a cut: what was synced is there; of the rest anything may be, in part or not at all, in any combination.
That is what POSIX allows, and more than file systems do.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tlaunch.checkpoint.files import Buffer, LocalFiles


@dataclass(frozen=True, slots=True)
class Step:
    """What was done: ``path`` is the file or folder, ``more`` is the other path of a rename."""

    what: str
    path: Path
    more: Path | None = None
    data: bytes = b""


class Recorder(LocalFiles):
    """Does what ``LocalFiles`` does, and writes every step down. ``steps`` may be shared by several writers."""

    def __init__(self, root: Path, steps: list[Step]) -> None:
        super().__init__(root)
        self.steps = steps

    def _mkdir(self, path: Path) -> None:
        super()._mkdir(path)
        self.steps.append(Step("mkdir", path))

    def _fill(self, path: Path, chunks: Iterable[Buffer]) -> None:
        super()._fill(path, chunks)
        data = path.read_bytes()
        self.steps += [Step("write", path, None, data[: len(data) // 2]), Step("write", path, None, data)]
        self.steps.append(Step("sync", path))

    def _rename(self, old: Path, new: Path) -> None:
        super()._rename(old, new)
        self.steps.append(Step("rename", old, new))

    def _unlink(self, path: Path) -> None:
        super()._unlink(path)
        self.steps.append(Step("unlink", path))

    def _rmtree(self, path: Path) -> None:
        for inside in sorted(path.iterdir()):
            self._unlink(inside)
        path.rmdir()
        self.steps.append(Step("unlink", path))

    def _sync(self, folder: Path) -> None:
        super()._sync(folder)
        self.steps.append(Step("sync", folder))


@dataclass(slots=True)
class _Node:
    """A file or folder: what is on the disk of it, and what is only in memory."""

    folder: bool
    data: bytes = b""
    durable: bytes = b""
    names: dict[str, _Node] = field(default_factory=dict)
    there: dict[str, _Node] = field(default_factory=dict)
    """The names that are durable."""


def after(steps: Sequence[Step], root: Path, into: Path, chance: random.Random | None) -> LocalFiles:
    """Make ``into`` what ``root`` may be after the power failed behind the last of ``steps``.

    Each thing that was not synced survives by chance; without ``chance`` nothing of it does.
    """
    top = _Node(folder=True)
    home = top.names[root.name] = top.there[root.name] = _Node(folder=True)
    assert home.folder

    def at(path: Path) -> _Node:
        node = top
        for part in path.relative_to(root.parent).parts:
            node = node.names[part]
        return node

    for step in steps:
        parent = at(step.path.parent) if step.path != root.parent else top
        match step.what:
            case "mkdir" if step.path.name not in parent.names:
                parent.names[step.path.name] = _Node(folder=True)
            case "write":
                parent.names.setdefault(step.path.name, _Node(folder=False)).data = step.data
            case "rename":
                assert step.more is not None
                at(step.more.parent).names[step.more.name] = parent.names.pop(step.path.name)
            case "unlink":
                parent.names.pop(step.path.name, None)
            case "sync":
                node = at(step.path) if step.path != root.parent else top
                node.durable, node.there = node.data, dict(node.names)
            case _:
                pass
    _show(home, into, chance)
    return LocalFiles(into)


def _show(node: _Node, path: Path, chance: random.Random | None) -> None:
    if not node.folder:
        kept = node.durable
        if node.data != node.durable and chance is not None:
            kept = node.data[: chance.randrange(len(node.data) + 1)]
        path.write_bytes(kept)
        return
    path.mkdir()
    names = dict(node.there)
    if chance is not None:
        for name in node.names.keys() | names.keys():
            now = node.names.get(name)
            if now is not names.get(name) and chance.random() < 0.5:
                if now is None:
                    del names[name]
                else:
                    names[name] = now
    for name in sorted(names):
        _show(names[name], path / name, chance)
