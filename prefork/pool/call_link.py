"""Calls on their way to one worker and back: their tokens, and the blocks with their large buffers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from prefork.pool.calls import Call
from prefork.pool.events import CallEnded
from prefork.wire.blocks import Blocks, Mapped, Place, Placed
from prefork.wire.calls import TOKEN, BlocksReleased, CallDone, CallFailed, CallOutOfMemory, RunCalls
from prefork.wire.exceptions import unpickle_error
from prefork.wire.pickling import Pickled

FromCalls = CallDone | CallFailed | CallOutOfMemory | BlocksReleased


class CallLink:
    """number: of the worker. blocks: those of this process, for all workers."""

    def __init__(self, number: int, blocks: Blocks) -> None:
        self._number = number
        self._blocks = blocks
        self._mapped = Mapped(private=False)
        self._tokens: tuple[int, int] | None = None  # the pipe's ends
        self._given = 0

    def open_tokens(self) -> int:
        """The worker's descriptor of the pipe."""
        self._tokens = reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)  # the most that a worker is given at a time fits in
        return os.dup(reading)

    def give(self, first: int, calls: Sequence[Call], at_once: bool) -> tuple[RunCalls, list[int]]:
        """The message for the worker, and the descriptors that go with it. at_once: it begins the first right away."""
        places: list[Place] = []
        for call in calls:
            if call.pickled.buffers:
                call.places = [self._blocks.put(buffer, call) for buffer in call.pickled.buffers]
                call.pickled.buffers = ()
            if call.places:
                self._blocks.hold(call.places, self._number)
                places += call.places
        fresh, fds = self._blocks.list_fresh(places, self._number)
        given = [(call.pickled.data, call.places) for call in calls]
        numbers = range(first + at_once, first + len(calls))
        if self._tokens is not None and numbers:  # before the calls: without a token they would be left out
            os.write(self._tokens[1], b"".join(map(TOKEN.pack, numbers)))
        return RunCalls(first, given, at_once, fresh, self._mapped.take_released()), fds

    def take_back(self) -> int:
        """Calls that the worker has not begun, and now never will."""
        if self._tokens is None:
            return 0
        try:
            return len(os.read(self._tokens[0], 1 << 16)) // TOKEN.size
        except BlockingIOError:
            return 0

    def take(self, message: FromCalls, fds: Sequence[int]) -> CallEnded | None:
        """What the worker has sent."""
        match message:
            case CallDone(number, data, places, fresh):
                for (block, size), fd in zip(fresh, fds, strict=True):
                    self._mapped.open(block, size, fd)
                return CallEnded(self._number, number, Pickled(data, [self._view(place) for place in places]))
            case CallFailed(number, error):
                return CallEnded(self._number, number, error=unpickle_error(error))
            case CallOutOfMemory(number, reason):
                return CallEnded(self._number, number, reason=reason)
            case BlocksReleased(returned, dropped):
                self._blocks.release(returned, self._number)
                self._mapped.forget(dropped)
        return None

    def _view(self, place: Place) -> memoryview | bytes:
        """It is handed over: whoever holds the view holds the block."""
        if isinstance(place, Placed) and place.theirs:
            self._blocks.release([place.block], self._number)
            return self._blocks.view(place)
        return self._mapped.view(place)

    def trim(self, dropped: Sequence[int]) -> RunCalls | None:
        """What the worker should know, if it should: blocks that are not needed any more. dropped: of this process."""
        returned = self._mapped.take_released()
        return RunCalls(0, (), False, (), returned, dropped) if returned or dropped else None

    def close(self) -> None:
        """The worker has gone."""
        self._blocks.forget(self._number)
        if self._tokens is not None:
            for fd in self._tokens:
                os.close(fd)
            self._tokens = None
