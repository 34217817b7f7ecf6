"""Messages between processes: whole, in order, with descriptors, and never blocking the supervisor."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from prefork.wire.channel import Channel


def _pair() -> tuple[Channel, Channel]:
    here, there = Channel.pair()
    return here, Channel(there)


def test_messages_arrive_whole_and_in_order_however_large() -> None:
    here, there = _pair()
    messages = [("small", 1), b"x" * 3_000_000, ("last", {"a": [1, 2]})]

    def send() -> None:
        for message in messages:
            there.send(message)

    sender = threading.Thread(target=send)
    sender.start()
    received: list[object] = []
    while len(received) < len(messages):
        received += here.poll()
    sender.join()
    assert received == messages


def test_posting_more_than_the_socket_takes_does_not_block() -> None:
    here, there = _pair()
    here.post(b"x" * 10_000_000)
    assert not here.flush()
    received: list[object] = []
    reader = threading.Thread(target=lambda: received.append(there.receive()[0]))
    reader.start()
    while not here.flush():
        pass
    reader.join()
    assert received == [b"x" * 10_000_000]


def test_descriptors_travel_with_their_message_and_are_closed_here() -> None:
    here, there = _pair()
    reading, writing = os.pipe()
    here.post("first")
    here.post("with a pipe", (writing,))
    assert here.flush()
    assert there.receive() == ("first", [])
    message, fds = there.receive()
    assert message == "with a pipe"
    os.write(fds[0], b"through")
    os.close(fds[0])
    assert os.read(reading, 100) == b"through"
    assert os.read(reading, 100) == b""  # no other writing end is open
    os.close(reading)


def test_the_end_of_the_other_side_is_told_after_its_last_message() -> None:
    here, there = _pair()
    there.send("last lines")
    there.close()
    messages = here.poll()
    assert next(messages) == "last lines"
    with pytest.raises(EOFError):
        next(messages)


def test_a_message_that_was_cut_off_is_none() -> None:
    left, right = socket.socketpair()
    left.send(b"\0\0\0\0\0\0\0\xffhalf")
    left.close()
    with pytest.raises(EOFError):
        list(Channel(right).poll())


def test_descriptors_that_were_never_sent_are_closed_with_the_channel() -> None:
    here, _there = _pair()
    reading, writing = os.pipe()
    here.post("never", (writing,))
    here.close()
    assert os.read(reading, 1) == b""
    os.close(reading)
