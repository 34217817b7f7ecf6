"""The calls of functions in a worker: begun one by one, and answered one by one."""

from __future__ import annotations

import os
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Sequence

from prefork.weights.device_memory import WeightsChanged
from prefork.wire import process
from prefork.wire.blocks import Blocks, Mapped, Place
from prefork.wire.calls import TOKEN, BlocksReleased, CallDone, CallFailed, CallOutOfMemory, OpenTokens, RunCalls
from prefork.wire.channel import Channel
from prefork.wire.exceptions import describe_error, pickle_error
from prefork.wire.messages import WeightsCorrupted
from prefork.wire.pickling import Pickled, dump_apart
from prefork.work.loaded import Loaded
from prefork.work.torch_state import is_out_of_memory

_US = "supervisor"  # who looks at the blocks of this process
Given = tuple[int, bytes, Sequence[Place]]


class Calls:
    """give_up: ends this process if the error says that its GPU can be used no more."""

    def __init__(self, channel: Channel, loaded: Loaded, give_up: Callable[[BaseException], None]) -> None:
        self._channel = channel
        self._models = tuple(loaded.models.values())
        self._give_up = give_up
        self._given: deque[Given] = deque()
        self._tokens: int | None = None
        self._next: int | None = None  # may be begun, and is still to come: those before it were taken back meanwhile
        self._blocks = Blocks()
        self._mapped = Mapped()

    def take(self, message: RunCalls | OpenTokens, fds: list[int]) -> None:
        """Runs all that it is given and may begin."""
        if isinstance(message, OpenTokens):
            (self._tokens,) = fds
            os.set_blocking(self._tokens, False)
            self._blocks = Blocks(message.blocks)
            return
        for (number, size), fd in zip(message.fresh, fds, strict=True):
            self._mapped.open(number, size, fd)
        self._mapped.forget(message.dropped)
        self._blocks.release(message.returned, _US)
        self._given.extend((message.first + place, *call) for place, call in enumerate(message.calls))
        if message.at_once:
            self._run(*self._given.popleft())
        while (given := self._begin()) is not None:
            self._run(*given)
        if not message.calls:
            self.trim()

    def _begin(self) -> Given | None:
        """The next that may be begun. Those before it, and all if there is none, have been taken back."""
        if self._tokens is None:
            return self._given.popleft() if self._given else None
        if self._next is None and self._given:
            self._next = self._read_token(self._tokens)
        while self._given:
            given = self._given.popleft()
            if given[0] == self._next:
                self._next = None
                return given
        return None

    @staticmethod
    def _read_token(fd: int) -> int | None:
        try:
            (number,) = TOKEN.unpack(os.read(fd, TOKEN.size))
        except BlockingIOError:
            return None
        return int(number)

    def _run(self, number: int, data: bytes, places: Sequence[Place]) -> None:
        answer = self._answer(number, data, places)
        process.flush_output()  # before anybody can end this worker
        if isinstance(answer, CallDone):
            returned, dropped = self._mapped.take_released(), self._blocks.take_gone(_US)
            fresh, fds = self._blocks.list_fresh(answer.places, _US) if answer.places else ((), [])
            self._channel.send(answer._replace(fresh=fresh, returned=returned, dropped=dropped), fds)
        else:
            self._channel.send(answer)
            self._return_blocks()

    def trim(self) -> None:
        """Gives back memory that is not needed any more."""
        self._blocks.trim()
        self._return_blocks()

    def _return_blocks(self) -> None:
        returned, dropped = self._mapped.take_released(), self._blocks.take_gone(_US)
        if returned or dropped:
            self._channel.send(BlocksReleased(returned, dropped))

    def _answer(
        self, number: int, data: bytes, places: Sequence[Place]
    ) -> CallDone | CallFailed | CallOutOfMemory | WeightsCorrupted:
        """A call's exception is its result; it costs the worker nothing."""
        try:
            result = self._call(data, places)
            return CallDone(number, result.data, self._place(result) if result.buffers else ())
        except BaseException as error:  # noqa: BLE001  whatever it raises, sys.exit included, goes to who asked for it
            if isinstance(error, WeightsChanged):
                return WeightsCorrupted(str(error))
            if is_out_of_memory(error):
                return CallOutOfMemory(number, describe_error(error))
            self._give_up(error)
            return CallFailed(number, pickle_error(error, traceback.format_exc()))

    def _call(self, data: bytes, places: Sequence[Place]) -> Pickled:
        target, args, kwargs = Pickled(data, [self._mapped.view(place) for place in places]).load()
        return dump_apart(target(*self._models, *args, **kwargs))

    def _place(self, result: Pickled) -> list[Place]:
        """Where the buffers of a result lie: in the blocks in which they have come, if nothing here looks at those any
        more and could change them, else in blocks of this process."""
        buffers, result.buffers = list(result.buffers), ()
        came_in = [self._mapped.locate(buffer) for buffer in buffers]
        for buffer, there in zip(buffers, came_in, strict=True):
            if there is not None and isinstance(buffer, memoryview | pickle.PickleBuffer):
                buffer.release()
        seen = {there.block for there in came_in if there is not None and self._mapped.is_seen(there.block)}
        places: list[Place] = []
        for buffer, there in zip(buffers, came_in, strict=True):
            if there is None:
                places.append(self._blocks.put(buffer, _US))
            elif there.block in seen:
                places.append(self._blocks.put(self._mapped.peek(there), _US))
            else:
                places.append(there)
        return places
