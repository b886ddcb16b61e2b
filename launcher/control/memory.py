"""Whether the kernel has killed processes for want of memory. It tells nobody, but it counts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COUNTER = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class OomKills:
    """The counter of kills that is closest to this process: of its control group, else of the machine."""

    path: Path
    count: int

    @classmethod
    def look(cls) -> OomKills | None:
        """Read it; ``None`` where the kernel has none."""
        for path in _candidates():
            try:
                found = _COUNTER.search(path.read_text())
            except OSError:
                continue
            if found:
                return cls(path, int(found[1]))
        return None

    def since(self, before: OomKills | None) -> str | None:
        """Say that there were kills since an earlier look, if so."""
        if before is None or before.path != self.path or before.count >= self.count:
            return None
        return f"out of memory: the kernel has killed {self.count - before.count} for it, says {self.path}"


def _candidates() -> Iterator[Path]:
    """Version 2 of control groups counts all below a group, version 1 each by itself. See proc(5), cgroups(7)."""
    root = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, place = line.split(":", 2)
        if number == "0":
            yield root / place.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield root / "memory" / place.lstrip("/") / "memory.oom_control"
            yield root / "memory" / "memory.oom_control"  # inside a container its own group is the root
    yield Path("/proc/vmstat")
