"""The event loop of one thread: what processes send and print, and what other threads want done."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable

from prefork.wire.channel import Channel
from prefork.wire.child import OutputPipe
from prefork.wire.shared_tracker import TrackerLink

Watched = Channel | OutputPipe | TrackerLink


class Loop:
    """Calls a handler whenever something that is watched can be read. All of it in one thread, but for `call_soon`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._actions: deque[Callable[[], None]] = deque()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_wake)
        self._unsent: set[Channel] = set()  # that hold what their sockets did not take yet
        self._lock = threading.RLock()  # what is collected meanwhile may call too
        self._ended = False

    def call_soon(self, action: Callable[[], None]) -> bool:
        """Has the loop's thread do something, soon; False if it has ended. From any thread."""
        with self._lock:
            if self._ended:
                return False
            self._actions.append(action)
            with contextlib.suppress(BlockingIOError):  # it is full: the loop will wake up
                self._waker.send(b"x")
            return True

    @property
    def has_actions(self) -> bool:
        return bool(self._actions)

    def watch(self, fileobj: Watched, handler: Callable[[], object]) -> None:
        self._selector.register(fileobj, selectors.EVENT_READ, handler)

    def ignore(self, fileobj: Watched) -> None:
        """Listens to it no more; it may have ended, and been ignored, before."""
        self._unsent.discard(fileobj)
        with contextlib.suppress(KeyError, ValueError):  # ValueError: it is closed
            self._selector.unregister(fileobj)

    def flush(self, channel: Channel) -> None:
        """Sends what can be sent, and comes back for the rest. A process that is gone shows when it is read from."""
        try:
            sent = channel.flush()
        except OSError:
            return
        if sent is (channel not in self._unsent):
            return
        self._unsent ^= {channel}
        events = selectors.EVENT_READ if sent else selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.modify(channel, events, self._selector.get_key(channel).data)

    def pass_on(self, stderr: OutputPipe, tail: bytearray, log: Callable[[str], None]) -> bool:
        """As OutputPipe has it; False if there is no more now."""
        found = stderr.pass_on(tail, log)
        if found is False:
            self.ignore(stderr)
        return bool(found)

    def turn(self, timeout: float) -> None:
        """Waits so many seconds at most, then handles all that there is."""
        ready = self._selector.select(0.0 if self._actions else timeout)
        for key, _ in ready or self._selector.select(0.0):  # a wait that was interrupted, as by Ctrl-Z, has not looked
            current = self._selector.get_map().get(key.fd)
            if current is not None and current.fileobj is key.fileobj:  # not gone since with its process
                current.data()
        self.do_actions()

    def do_actions(self) -> None:
        while self._actions:
            self._actions.popleft()()

    def end(self) -> None:
        """Takes no more from other threads; what they have asked for until now is done."""
        with self._lock:
            self._ended = True
        self.do_actions()

    def forget(self) -> None:
        """In a forked process: takes nothing, and whoever held the lock at the fork is not here to release it."""
        self._lock = threading.RLock()
        self._ended = True

    def close(self) -> None:
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)
