"""Messages between prefork's own processes: length-prefixed pickles over a Unix socket pair.

Both ends are processes that prefork started itself; nothing that a user downloads ever passes here.

macOS loses a descriptor now and then that its sender closes before the other side has taken it out of the socket. There
it is kept until the other side says that it has it, as multiprocessing.reduction.sendfds of Python does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from prefork.platform_matrix.systems import SYSTEM

_HEADER = struct.Struct("!QBB")  # bytes of the message, descriptors that come with it, and its kind
_frequent: list[type] = []  # kinds of messages, from 1 on; 0 is any other
_RECEIVED = 0x7F  # the kind of what says that the descriptors of a message have come
_KEPT = 0x80  # added to a message's kind: its descriptors are kept until then
# macOS, of descriptors that find no room in the socket: not now, as libuv takes it too (src/unix/stream.c).
_NOT_NOW = (errno.EMSGSIZE, errno.ENOBUFS)
_RETRY_SECONDS = 0.002
_CHUNK = 1 << 18  # bytes sent at a time
_BUFFER = 1 << 16  # bytes read at a time
_ANCILLARY = socket.CMSG_SPACE(4 * 250) if SYSTEM.passes_descriptors else 0  # the kernel sends 253 descriptors


T = TypeVar("T", bound=tuple[Any, ...])


def mark_frequent(kind: type[T]) -> type[T]:
    """A decorator of named tuples, in one module of all: their pickles do without a name to be looked up."""
    _frequent.append(kind)
    return kind


class Channel:
    """One end of a socket pair.

    A worker or the zygote uses `send` and `receive`, which block. The supervisor must never block on a process
    that may hang: its end, the one that `pair` makes, does not block, and it uses `post`, which queues, `flush`, which
    sends what the socket takes, and `poll`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray(_BUFFER)
        self._incoming = bytearray()
        self._fds: deque[int] = deque()  # that have come with what is in it
        self._waiting: selectors.BaseSelector | None = None
        self._outgoing: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._sent: deque[Sequence[int]] = deque()  # descriptors that are kept until the other end has them

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """A channel, and the other end to be given to another process."""
        here, there = socket.socketpair()
        here.setblocking(False)
        return cls(here), there

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.close()
        self._socket.close()
        for fds in (*(fds for _, fds in self._outgoing), *self._sent, self._fds):
            _close_all(fds)
        self._outgoing.clear()
        self._sent.clear()
        self._fds.clear()

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Blocks until the message is with the kernel. The descriptors go with it: here they are closed, on macOS once
        the other end has them. Raises OSError if the other end is gone."""
        data = memoryview(_encode(message, fds))
        try:
            if fds:
                data = data[self._send_some(data, fds) :]
            self._socket.sendall(data)
        except BaseException:
            _close_all(fds)
            raise
        self._let_go(fds)

    def _let_go(self, fds: Sequence[int]) -> None:
        """These have been sent."""
        if fds and SYSTEM.loses_descriptors:
            self._sent.append(fds)
        else:
            _close_all(fds)

    def receive(self) -> tuple[Any, list[int]]:
        """Blocks for the next message and the file descriptors that came with it. Raises EOFError at the end. Reads
        nothing beyond it: who waits for more can ask the socket."""
        while True:
            header = bytearray(_HEADER.size)
            count, fds = self._receive_some(header)
            if not count:
                raise EOFError("the other end closed the channel")
            self._fill(memoryview(header)[count:])
            length, _, kind = _HEADER.unpack(header)
            data = bytearray(length)
            self._fill(memoryview(data))
            if self._is_message(kind):
                return _decode(data, kind), fds

    def _is_message(self, kind: int) -> bool:
        """Whether what has come is one, and not the word that descriptors have come; sends that if it is asked for."""
        if kind == _RECEIVED:
            _close_all(self._sent.popleft())
        elif kind & _KEPT:
            self._outgoing.append((memoryview(_HEADER.pack(0, 0, _RECEIVED)), ()))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has gone, and its descriptors with it
                self.flush()
        return kind != _RECEIVED

    def wait(self, seconds: float | None) -> bool:
        """Whether there is something to receive, or the end, within so many seconds; None for as long as it takes."""
        if self._waiting is None:  # to make it takes longer than to wait for the next of many short calls
            self._waiting = selectors.DefaultSelector()
            self._waiting.register(self._socket, selectors.EVENT_READ)
        return bool(self._waiting.select(seconds))

    def _receive_some(self, buffer: bytearray) -> tuple[int, list[int]]:
        """Bytes, 0 at the end, and the descriptors with them."""
        if not SYSTEM.passes_descriptors:
            return self._socket.recv_into(buffer), []
        count, ancillary, _flags, _address = self._socket.recvmsg_into([buffer], _ANCILLARY)
        return count, [fd for _, _, data in ancillary for (fd,) in struct.iter_unpack("i", data[: len(data) & ~3])]

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError("the other end closed the channel in the middle of a message")
            view = view[count:]

    def post(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Queues a message. The descriptors go with it: here they are closed once they have been sent."""
        self._outgoing.append((memoryview(_encode(message, fds)), fds))

    def flush(self) -> bool:
        """Sends what the socket takes without blocking; True when nothing is left to send."""
        while self._outgoing:
            view, fds = self._outgoing[0]
            try:
                count = self._send_some(view[:_CHUNK], fds)
            except BlockingIOError:
                return False
            self._let_go(fds)  # they went with the first byte
            if count == len(view):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (view[count:], ())
        return True

    def _send_some(self, view: memoryview, fds: Sequence[int]) -> int:
        if not fds:
            return self._socket.send(view)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
        while True:
            try:
                return self._socket.sendmsg([view], ancillary)
            except OSError as error:
                if error.errno not in _NOT_NOW:
                    raise
                time.sleep(_RETRY_SECONDS)  # for bytes there is room, so that nobody else waits
                if not self._socket.getblocking():
                    raise BlockingIOError(error.errno, error.strerror) from error

    def poll(self) -> Iterator[Any]:
        """The messages that have arrived whole; those of processes that send no descriptors."""
        return (message for message, _ in self.poll_with_fds())

    def poll_with_fds(self) -> Iterator[tuple[Any, list[int]]]:
        """The messages that have arrived whole, with their descriptors. Raises EOFError, after the last of them, if the
        end is gone."""
        ended = False
        while not ended:
            try:
                count, fds = self._receive_some(self._buffer)
            except BlockingIOError:
                break
            except ConnectionResetError:
                count, fds = 0, []
            self._incoming += memoryview(self._buffer)[:count]
            self._fds += fds
            ended = not count
        yield from self._take_whole()
        if ended:
            raise EOFError("the other end closed the channel")

    def _take_whole(self) -> Iterator[tuple[Any, list[int]]]:
        while len(self._incoming) >= _HEADER.size:
            length, count, kind = _HEADER.unpack_from(self._incoming)
            end = _HEADER.size + length
            if len(self._incoming) < end:
                return
            is_message = self._is_message(kind)
            with memoryview(self._incoming) as view, view[_HEADER.size : end] as data:
                message = _decode(data, kind) if is_message else None
            del self._incoming[:end]
            if is_message:
                yield message, [self._fds.popleft() for _ in range(count)]


def _encode(message: Any, fds: Sequence[int]) -> bytes:
    kind = _frequent.index(type(message)) + 1 if type(message) in _frequent else 0
    payload = pickle.dumps(tuple(message) if kind else message, pickle.HIGHEST_PROTOCOL)
    return _HEADER.pack(len(payload), len(fds), kind | _KEPT if fds and SYSTEM.loses_descriptors else kind) + payload


def _decode(data: bytearray | memoryview, kind: int) -> Any:
    message, kind = pickle.loads(data), kind & ~_KEPT
    return _frequent[kind - 1](*message) if kind else message


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
