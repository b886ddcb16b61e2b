"""Asking an agent whether it is there: three answers, each within its deadline."""

from __future__ import annotations

import socket

from tlaunch.launcher.control.probe import Listener, Verdict, probe, probe_all
from tlaunch.launcher.control.records import Registration
from tlaunch.topology.model import Node


def registration(address: str, incarnation: str = "abc", node: str = "node-00") -> Registration:
    return Registration(Node(node, 1), "host", 1, incarnation, address)


async def test_a_living_agent_answers() -> None:
    listener = Listener("abc")
    address = await listener.open("127.0.0.1")
    assert await probe(registration(address), 5) is Verdict.ALIVE
    await listener.close()


async def test_another_incarnation_means_that_the_asked_one_is_gone() -> None:
    listener = Listener("new")
    address = await listener.open("127.0.0.1")
    assert await probe(registration(address, "old"), 5) is Verdict.GONE
    await listener.close()


async def test_a_refused_connection_means_gone_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert await probe(registration(f"127.0.0.1:{port}"), 60) is Verdict.GONE


async def test_a_stopped_agent_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stopped:  # accepts nothing, as a stopped process does
        address = f"127.0.0.1:{stopped.getsockname()[1]}"
        assert await probe(registration(address), 0.05) is Verdict.SILENT


async def test_many_are_asked_at_once() -> None:
    listener = Listener("abc")
    address = await listener.open("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
    asked = [registration(address, node="a"), registration(closed, node="b"), registration("nonsense", node="c")]
    assert await probe_all(asked, 5) == {"a": Verdict.ALIVE, "b": Verdict.GONE, "c": Verdict.SILENT}
    await listener.close()
