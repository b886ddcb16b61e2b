"""Asking an agent whether it is there: three answers, each within its deadline."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from tlaunch.launcher.control.probe import Answer, Listener, Verdict, probe, probe_all
from tlaunch.launcher.control.records import Registration
from tlaunch.topology.model import Node


def registration(address: str, incarnation: str = "abc", node: str = "node-00") -> Registration:
    return Registration(Node(node, 1), "host", 1, incarnation, address)


async def test_a_living_agent_answers() -> None:
    listener = Listener("abc")
    address = await listener.open("127.0.0.1")
    assert (await probe(registration(address), 5)).verdict is Verdict.ALIVE
    await listener.close()


async def test_an_agent_says_what_its_clock_shows() -> None:
    listener = Listener("abc")
    address = await listener.open("127.0.0.1")
    answer = await probe(registration(address), 5)
    assert answer.clock == pytest.approx(0, abs=1), "it is on the same machine"
    await listener.close()


async def test_a_machine_that_was_started_an_hour_later_has_another_clock() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"abc {time.monotonic() - 3600}\n".encode())
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert (await probe(registration(address), 5)).clock == pytest.approx(3600, abs=1)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("greeting", ["abc\n", "abc soon\n"])
async def test_an_agent_that_says_nothing_of_its_clock_is_alive_all_the_same(greeting: str) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting.encode())
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert await probe(registration(address), 5) == Answer(Verdict.ALIVE)
    server.close()
    await server.wait_closed()


async def test_another_incarnation_means_that_the_asked_one_is_gone() -> None:
    listener = Listener("new")
    address = await listener.open("127.0.0.1")
    assert (await probe(registration(address, "old"), 5)).verdict is Verdict.GONE
    await listener.close()


async def test_a_refused_connection_means_gone_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert (await probe(registration(f"127.0.0.1:{port}"), 60)).verdict is Verdict.GONE


async def test_a_stopped_agent_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stopped:  # accepts nothing, as a stopped process does
        address = f"127.0.0.1:{stopped.getsockname()[1]}"
        assert (await probe(registration(address), 0.05)).verdict is Verdict.SILENT


async def test_many_are_asked_at_once() -> None:
    listener = Listener("abc")
    address = await listener.open("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
    asked = [registration(address, node="a"), registration(closed, node="b"), registration("nonsense", node="c")]
    assert {name: answer.verdict for name, answer in (await probe_all(asked, 5)).items()} == {
        "a": Verdict.ALIVE,
        "b": Verdict.GONE,
        "c": Verdict.SILENT,
    }
    await listener.close()


async def test_no_more_than_so_many_are_asked_at_once() -> None:
    now, most = 0, 0

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)  # whoever else is asked at the same time gets here as well
        now -= 1
        writer.write(b"abc\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    asked = [registration(address, node=f"node-{index}") for index in range(20)]
    assert {answer.verdict for answer in (await probe_all(asked, 10, at_once=3)).values()} == {Verdict.ALIVE}
    assert most == 3
    server.close()
    await server.wait_closed()


async def test_many_silent_agents_take_no_longer_than_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        address = f"127.0.0.1:{stopped.getsockname()[1]}"
        asked = [registration(address, node=f"node-{index}") for index in range(20)]
        start = time.monotonic()
        assert {answer.verdict for answer in (await probe_all(asked, 0.2, at_once=2)).values()} == {Verdict.SILENT}
        assert time.monotonic() - start < 1.5, "ten rounds would take 2 s"
