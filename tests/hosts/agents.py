"""Agents that do what a test says: a shell script is run in place of the interpreter."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tlaunch.launcher.control.config import AgentConfig
from tlaunch.launcher.core.plan import Plan, Result
from tlaunch.launcher.hosts.agents import AgentProcess
from tlaunch.launcher.observe.jobview import JobView
from tlaunch.launcher.observe.view import Stream
from tlaunch.topology.model import Node


@dataclass
class Told:
    """A view that keeps what it is told."""

    lines: list[tuple[int, str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, beginning: str) -> None:
        """Wait for a notice."""
        while not any(notice.startswith(beginning) for notice in self.notices):
            self.news.clear()
            await self.news.wait()

    def worker_line(self, rank: int, stream: Stream, text: str) -> None:
        self.lines.append((rank, stream, text))

    def snapshot(self, job: JobView) -> None:
        self.looked.set()

    def plan(self, plan: Plan, previous: Plan | None) -> None:
        self.generations.append(plan.generation)

    def notice(self, text: str) -> None:
        self.notices.append(text)
        self.news.set()

    def close(self, result: Result | None) -> None:
        pass


async def start_agents(
    script: str,
    nodes: Iterable[Node],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    view: Told,
    ended: Callable[[], None],
) -> list[AgentProcess]:
    """Start an agent for each node; all of them run ``script``."""
    program = folder / "agent"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    agents = [AgentProcess(_config(node, folder), {}, view, ended) for node in nodes]
    for agent in agents:
        await agent.start()
    return agents


def _config(node: Node, folder: Path) -> AgentConfig:
    return AgentConfig(
        job="job",
        node=node,
        discover=False,
        host="127.0.0.1",
        log_dir=folder / "logs",
        zygote=None,
        start="fork",
        policy=None,
        lifeline=None,
        module=False,
        argv=("script.py",),
    )
