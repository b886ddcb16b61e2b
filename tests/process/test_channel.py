"""Messages and descriptors arrive whole, in order and once, however the socket cuts them."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlaunch.launcher.process.channel import Channel, ChannelClosed, Message


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    channels = Channel(left), Channel(right)
    yield channels
    for channel in channels:
        channel.close()


def transfer(sender: Channel, receiver: Channel) -> list[tuple[Message, list[int]]]:
    """Move everything that waits."""
    received = []
    while sender.wants_write or select.select([receiver], [], [], 0)[0]:
        received += receiver.receive()
        sender.flush()
    return received


def test_messages_in_order(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    left.send({"n": 1})
    left.send({"n": 2, "text": "ü\udcff"})
    right.send({"other": "way"})
    assert right.receive() == [({"n": 1}, []), ({"n": 2, "text": "ü\udcff"}, [])]
    assert left.receive() == [({"other": "way"}, [])]
    assert right.receive() == []


def test_descriptors_belong_to_their_message(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    pipes = [os.pipe() for _ in range(3)]
    left.send({"n": 0}, [pipes[0][1]])
    left.send({"n": 1})
    left.send({"n": 2}, [pipes[1][1], pipes[2][1]])
    for _, write in pipes:
        os.close(write)
    received = transfer(left, right)
    assert [(message["n"], len(fds)) for message, fds in received] == [(0, 1), (1, 0), (2, 2)]
    fds = [fd for _, fds in received for fd in fds]
    for fd, (read, _) in zip(fds, pipes, strict=True):
        assert not os.get_inheritable(fd)
        os.write(fd, b"x")
        os.close(fd)
        assert os.read(read, 2) == b"x"
        assert os.read(read, 2) == b""
        os.close(read)


def test_more_than_the_socket_holds(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    read, write = os.pipe()
    left.send({"large": "x" * 3_000_000}, [write])
    left.send({"small": 1}, [write])
    assert left.wants_write
    os.close(write)
    received = transfer(left, right)
    assert [len(message.get("large", "")) for message, _ in received] == [3_000_000, 0]
    for _, (fd,) in received:
        os.close(fd)
    assert os.read(read, 1) == b""
    os.close(read)


@given(st.lists(st.text(max_size=20), max_size=5), st.integers(1, 7))
def test_any_cut(texts: list[str], size: int) -> None:
    whole, copy = socket.socketpair()
    cut, end = socket.socketpair()
    with whole, copy, cut, end:
        channel = Channel(whole)
        for text in texts:
            channel.send({"text": text})
        whole.shutdown(socket.SHUT_WR)
        data = b"".join(iter(lambda: copy.recv(1 << 16), b""))
        end.setblocking(False)
        receiver = Channel(end)
        received: list[str] = []
        for start in range(0, len(data), size):
            cut.send(data[start : start + size])
            received += [message["text"] for message, _ in receiver.receive()]
        assert received == texts


def test_a_peer_that_is_gone(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    right.send({"last": "word"})
    right.close()
    left.send({"to": "nobody"}, [0])
    assert not left.wants_write
    assert left.receive() == [({"last": "word"}, [])]
    with pytest.raises(ChannelClosed, match="gone"):
        left.receive()
    left.send({"to": "nobody"})


def test_descriptors_that_nobody_takes_are_closed(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    read, write = os.pipe()
    left.send({"large": "x" * 3_000_000}, [write])
    left.send({"waits": 1}, [write])
    os.close(write)
    right.receive()  # the first descriptor is here, its message is not complete
    left.close()
    right.close()
    assert os.read(read, 1) == b""
    os.close(read)


def test_an_absurd_length_is_refused() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.send(struct.pack("!IH", 1 << 31, 0))
        with pytest.raises(ChannelClosed, match="a message of 2147483648 bytes was announced"):
            Channel(right).receive()


def test_waiting_for_one() -> None:
    left, right = socket.socketpair()
    with left, right:
        Channel(left).send({"work": 1})
        assert Channel(right).receive_one() == ({"work": 1}, [])
        left.close()
        with pytest.raises(ChannelClosed):
            Channel(right).receive_one()
