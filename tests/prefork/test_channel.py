"""Messages between processes: whole, in order, with descriptors, and never blocking the supervisor."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections import deque
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefork.platform_matrix.systems import SYSTEM, choose
from prefork.wire import channel
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


class Lossy:
    """A socket as macOS has it: a descriptor that its sender closes in flight is lost. Of one process's two ends."""

    sent: ClassVar[deque[list[tuple[int, int]]]] = deque()  # numbers and files of descriptors that are in flight
    refusals: ClassVar[list[int]] = []  # error numbers that the next sendmsg fail with

    def __init__(self, own: socket.socket) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def sendmsg(self, buffers: Any, ancillary: Any) -> int:
        if self.refusals:
            number = self.refusals.pop()
            raise OSError(number, os.strerror(number))
        fds = struct.unpack(f"{len(ancillary[0][2]) // 4}i", ancillary[0][2])
        self.sent.append([(fd, os.fstat(fd).st_ino) for fd in fds])
        return self._own.sendmsg(buffers, ancillary)

    def recvmsg_into(self, buffers: Any, size: int) -> Any:
        count, ancillary, flags, address = self._own.recvmsg_into(buffers, size)
        if ancillary:
            for fd, number in self.sent.popleft():
                try:
                    is_there = os.fstat(fd).st_ino == number
                except OSError:
                    is_there = False
                if not is_there:
                    for (got,) in struct.iter_unpack("i", ancillary[0][2]):
                        os.close(got)
                    return count, [], flags, address
        return count, ancillary, flags, address


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> tuple[Channel, Channel]:
    """The supervisor's end and another process's, on macOS."""
    monkeypatch.setattr(SYSTEM, "loses_descriptors", True)
    monkeypatch.setattr(Lossy, "sent", deque())
    monkeypatch.setattr(Lossy, "refusals", [])
    here, there = socket.socketpair()
    here.setblocking(False)
    ends: Any = [Lossy(here), Lossy(there)]
    return Channel(ends[0]), Channel(ends[1])


def _open_pipe() -> tuple[int, int]:
    """Its writing end, and the number of its file."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing, os.fstat(writing).st_ino


def _is_open(fd: int, number: int) -> bool:
    try:
        return os.fstat(fd).st_ino == number
    except OSError:
        return False


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_descriptors_are_kept_until_the_other_side_has_them(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[bool, int]]
) -> None:
    """In both directions, in any order, with any number in a message."""
    monkeypatch.setattr(SYSTEM, "loses_descriptors", True)
    monkeypatch.setattr(Lossy, "sent", deque())
    left, right = socket.socketpair()
    left.setblocking(False)
    ends: Any = Lossy(left), Lossy(right)
    here, there = Channel(ends[0]), Channel(ends[1])
    mine: list[tuple[int, int]] = []
    for place, (down, count) in enumerate(steps):
        pipes = [_open_pipe() for _ in range(count)]
        mine += pipes
        numbers = [number for _, number in pipes]
        if down:
            here.post(place, [fd for fd, _ in pipes])
            assert here.flush()
            message, fds = there.receive()
        else:
            there.send(place, [fd for fd, _ in pipes])
            message, fds = next(here.poll_with_fds())
        assert (message, [os.fstat(fd).st_ino for fd in fds]) == (place, numbers)
        channel._close_all(fds)
    assert not list(here.poll())
    there.send("last")
    here.post("last")
    here.flush()
    assert (list(here.poll()), there.receive()) == (["last"], ("last", []))
    assert not any(_is_open(*pipe) for pipe in mine)
    here.close()
    there.close()


def test_it_is_macos_that_loses_them() -> None:
    assert choose("darwin").loses_descriptors and not choose("linux").loses_descriptors


@pytest.mark.parametrize("number", [errno.EMSGSIZE, errno.ENOBUFS])
def test_descriptors_that_find_no_room_are_sent_again(lossy: tuple[Channel, Channel], number: int) -> None:
    here, there = lossy
    pipe = _open_pipe()
    Lossy.refusals += [number] * 2
    here.post("down", [pipe[0]])
    assert not here.flush() and not here.flush() and here.flush()
    message, fds = there.receive()
    assert message == "down" and os.fstat(fds[0]).st_ino == pipe[1]
    Lossy.refusals += [number] * 2
    there.send("up", fds)
    assert [message for message, _ in here.poll_with_fds()] == ["up"]


def test_who_waits_for_room_for_descriptors_does_not_turn_in_circles(
    monkeypatch: pytest.MonkeyPatch, lossy: tuple[Channel, Channel]
) -> None:
    """There is room for bytes, so a selector comes back at once."""
    monkeypatch.setattr(channel, "_RETRY_SECONDS", 0.05)
    here, _ = lossy
    Lossy.refusals.append(errno.EMSGSIZE)
    here.post("down", [_open_pipe()[0]])
    before = time.monotonic()
    assert not here.flush() and time.monotonic() - before >= 0.05
    here.close()


def test_descriptors_that_nobody_took_are_closed_with_the_channel(lossy: tuple[Channel, Channel]) -> None:
    here, _ = lossy
    pipe = _open_pipe()
    here.post("down", [pipe[0]])
    assert here.flush() and _is_open(*pipe)
    here.close()
    assert not _is_open(*pipe)
