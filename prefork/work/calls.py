"""The calls of functions in a worker: begun one by one, and answered one by one."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from prefork.platform_matrix.systems import SYSTEM
from prefork.weights.device_memory import WeightsChanged
from prefork.wire import process, progress
from prefork.wire.blocks import Blocks, Mapped, Place
from prefork.wire.calls import (
    MOST_YIELDED,
    TOKEN,
    BlocksReleased,
    CallDone,
    CallFailed,
    CallGave,
    CallOutOfMemory,
    ContinueCall,
    OpenTokens,
    RunCalls,
)
from prefork.wire.channel import Channel
from prefork.wire.exceptions import describe_error, pickle_error
from prefork.wire.messages import WeightsCorrupted
from prefork.wire.pickling import Pickled, dump_apart
from prefork.wire.wrapped import Reporting
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
        self._number = -1  # of the call that runs
        self._open = 0  # things that it has yielded, and nobody has taken
        self._sending = threading.Lock()  # a thread of the call's may report too
        self._is_interruptible = self._is_to_end = False
        self._pid = os.getpid()
        if SYSTEM.interruption is not None:
            signal.signal(SYSTEM.interruption, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        """The call that runs, or is about to, is to end: after it, this worker gets no other. It is interrupted once,
        and nowhere else than in the user's code: what it sends is sent whole."""
        self._is_to_end = True
        if self._is_interruptible:
            self._end_call()

    def _end_call(self) -> None:
        self._is_interruptible = self._is_to_end = False
        raise KeyboardInterrupt("the call is to end: it was cancelled, or has reached its timeout")

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """Within the call that runs, what is not the user's code; an interruption waits until it is done. It comes in
        the main thread, so that others need not care."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        was, self._is_interruptible = self._is_interruptible, False
        try:
            yield
        finally:
            self._is_interruptible = was
        if was and self._is_to_end:
            self._end_call()

    def take(self, message: RunCalls | OpenTokens | ContinueCall, fds: list[int]) -> None:
        """Runs all that it is given and may begin."""
        if isinstance(message, ContinueCall):
            self._open -= message.taken if message.number == self._number else 0
            return
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
        if self._number >= 0:  # it is at a call, and has looked for this one's sake
            return
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
            self._send(answer)
        else:
            self._channel.send(answer)
            self._return_blocks()

    def _send(self, message: CallDone | CallGave) -> None:
        returned, dropped = self._mapped.take_released(), self._blocks.take_gone(_US)
        fresh, fds = self._blocks.list_fresh(message.places, _US) if message.places else ((), [])
        self._channel.send(message._replace(fresh=fresh, returned=returned, dropped=dropped), fds)

    def _give(self, thing: Any, yielded: bool) -> None:
        """Sends something while the call runs; nothing from a process that it has forked."""
        pickled = dump_apart(thing)
        with self._uninterrupted(), self._sending:
            if self._number >= 0 and os.getpid() == self._pid:
                places = self._place(pickled) if pickled.buffers else ()
                self._send(CallGave(self._number, pickled.data, yielded, places))

    def _give_all(self, things: Iterable[Any]) -> None:
        """What a call yields, no more at a time than may be open."""
        self._open = 0
        for thing in things:
            self._give(thing, yielded=True)
            del thing
            self._open += 1
            while self._open >= MOST_YIELDED:
                self._channel.wait(None)
                with self._uninterrupted():
                    self.take(*self._channel.receive())

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
            try:
                self._number, self._is_interruptible = number, True
                if self._is_to_end:
                    self._end_call()
                result = self._call(data, places)
            finally:
                self._is_interruptible = False
                with self._sending:
                    self._number = -1
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
        if isinstance(target, Reporting):
            return self._call_reporting(target, args, kwargs)
        return dump_apart(target(*self._models, *args, **kwargs))

    def _call_reporting(self, target: Reporting, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Pickled:
        """While it runs, somebody gets what it reports, and if that is wanted, what it yields."""
        progress.listen(partial(self._give, yielded=False))
        try:
            result = target.function(*self._models, *args, **kwargs)
            if target.yields:
                self._give_all(result)
                result = None
            return dump_apart(result)
        finally:
            progress.listen(None)

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
