"""Calls on their way to one worker and back: their tokens, and the blocks with their large buffers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from prefork.pool import events
from prefork.pool.calls import Call
from prefork.pool.events import CallEnded
from prefork.wire.blocks import IDLE_SECONDS, Blocks, Mapped, Place, Placed
from prefork.wire.calls import TOKEN, BlocksReleased, CallDone, CallFailed, CallGave, CallOutOfMemory, RunCalls
from prefork.wire.exceptions import unpickle_error
from prefork.wire.pickling import Pickled

FromCalls = CallDone | CallGave | CallFailed | CallOutOfMemory | BlocksReleased


class CallLink:
    """number: of the worker. blocks: those of this process, for all workers."""

    def __init__(self, number: int, blocks: Blocks) -> None:
        self._number = number
        self._blocks = blocks
        self._mapped = Mapped()
        self._tokens: tuple[int, int] | None = None  # the pipe's ends
        self._places: dict[int, Sequence[Place]] = {}  # of the calls that have not been answered, by number
        self._trimmed = 0.0

    def open_tokens(self) -> int:
        """The worker's descriptor of the pipe."""
        self._tokens = reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)  # the most that a worker is given at a time fits in
        return os.dup(reading)

    def give(self, first: int, calls: Sequence[Call], at_once: bool) -> tuple[RunCalls, list[int]]:
        """The message for the worker, and the descriptors that go with it. at_once: it begins the first right away."""
        places: list[Place] = []
        for number, call in enumerate(calls, first):
            if call.pickled.buffers:
                call.places = [self._blocks.put(buffer, call) for buffer in call.pickled.buffers]
                call.pickled.buffers = ()
            if call.places:
                self._blocks.hold(call.places, self._number)
                self._places[number] = call.places
                places += call.places
        fresh, fds = self._blocks.list_fresh(places, self._number)
        given = [(call.pickled.data, call.places) for call in calls]
        numbers = range(first + at_once, first + len(calls))
        if self._tokens is not None and numbers:  # before the calls: without a token they would be left out
            os.write(self._tokens[1], b"".join(map(TOKEN.pack, numbers)))
        dropped = self._blocks.take_gone(self._number)
        return RunCalls(first, given, at_once, fresh, self._mapped.take_released(), dropped), fds

    def take_back(self) -> list[int]:
        """The numbers of calls that the worker has not begun, and now never will."""
        if self._tokens is None:
            return []
        try:
            data = os.read(self._tokens[0], 1 << 16)
        except BlockingIOError:
            return []
        numbers = [number for (number,) in TOKEN.iter_unpack(data)]
        for number in numbers:
            self._blocks.let_go(self._places.pop(number, ()), self._number)
        return numbers

    def take(self, message: FromCalls, fds: Sequence[int]) -> CallEnded | events.CallGave | None:
        """What the worker has sent."""
        if not isinstance(message, BlocksReleased | CallGave):
            self._places.pop(message.number, None)
        match message:
            case CallDone(number):
                return CallEnded(self._number, number, self._receive(message, fds))
            case CallGave(number, _, yielded):
                return events.CallGave(self._number, number, self._receive(message, fds), yielded)
            case CallFailed(number, error):
                return CallEnded(self._number, number, error=unpickle_error(error))
            case CallOutOfMemory(number, reason):
                return CallEnded(self._number, number, reason=reason)
            case BlocksReleased(returned, dropped):
                self._blocks.release(returned, self._number)
                self._mapped.forget(dropped)
        return None

    def _receive(self, message: CallDone | CallGave, fds: Sequence[int]) -> Pickled:
        self._mapped.forget(message.dropped)
        for (block, size), fd in zip(message.fresh, fds, strict=True):
            self._mapped.open(block, size, fd)
        thing = Pickled(message.data, [self._view(place) for place in message.places])
        self._blocks.release(message.returned, self._number)  # what the places lie in is not returned before
        return thing

    def _view(self, place: Place) -> memoryview | bytearray:
        """It is handed over: whoever holds the view holds the block."""
        if isinstance(place, Placed) and place.theirs:
            return self._blocks.view(place)
        return self._mapped.view(place)

    def trim(self, now: float) -> RunCalls | None:
        """What the worker should know, if it should: blocks that are not needed any more."""
        returned, dropped = self._mapped.take_released(), self._blocks.take_gone(self._number)
        wants = bool(self._mapped) and now - self._trimmed > IDLE_SECONDS
        if not (returned or dropped or wants):
            return None
        self._trimmed = now
        return RunCalls(0, (), False, (), returned, dropped)

    def close(self) -> None:
        """The worker has gone."""
        self._blocks.forget(self._number)
        if self._tokens is not None:
            for fd in self._tokens:
                os.close(fd)
            self._tokens = None
