"""Orders on their way to machines, and their answers on the way back, in the messages of Dask's own streams.

A task of Dask's costs client and scheduler 1 to 3 ms each: a graph, a state machine, who has the result. What is needed
of that, `Dispatch` does; a message costs a tenth.
"""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Client

from prefork.cluster.dispatching import Unit
from prefork.cluster.messages import ANSWER, ORDERS, SEND_BYTES, EndOrder, JobOrder, TaskOrder

_MOST_BYTES = 2 * SEND_BYTES  # of recordings that are sent, and not yet answered for


class Orders:
    """Numbers them, so that an answer finds its unit. All but `hear` and `fail` is of the cluster's thread."""

    def __init__(
        self,
        client: Client,
        session: str,
        hear: Callable[[str, int, bytes], None],
        fail: Callable[[int, Exception], None],
    ) -> None:
        """hear: gets a machine's address, the number of its order, and its answer, pickled. fail: the number of an
        order whose files cannot be read. Both are called in other threads."""
        self._client = client
        self._loop: Any = client.loop
        self._session = session
        self._hear = hear
        self._fail = fail
        self._numbers = itertools.count(1)
        self._given: dict[int, tuple[Unit, str]] = {}
        self._waiting: list[tuple[str, int, bytes]] = []  # until `send`
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="prefork-read")
        self._changed = threading.Condition()
        self._sizes: dict[int, int] = {}  # bytes of files that were sent, by the number of an order without an answer
        self._is_closed = False
        client._stream_handlers[ANSWER] = self._take_answer

    def give(self, unit: Unit, address: str, order: JobOrder | TaskOrder, contents: bool) -> int:
        """Its number. It is sent with the next `send`, or later if the contents of the job's files go with it."""
        number = next(self._numbers)
        self._given[number] = (unit, address)
        if contents and isinstance(order, JobOrder):
            self._reader.submit(self._read, address, number, order)
        else:
            self._waiting.append((address, number, pickle.dumps(order, pickle.HIGHEST_PROTOCOL)))
        return number

    def end(self, address: str) -> int:
        """Has a machine end its processes and report; the number of that order."""
        number = next(self._numbers)
        self._waiting.append((address, number, pickle.dumps(EndOrder())))
        return number

    def send(self) -> None:
        if self._waiting:
            self._post(self._waiting)
            self._waiting = []

    def take(self, number: int) -> tuple[Unit, str] | None:
        """The unit and the machine of an order that is answered, or whose answer is not wanted any more; None if it was
        taken before."""
        with self._changed:
            self._sizes.pop(number, None)
            self._changed.notify_all()
            return self._given.pop(number, None)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _post(self, orders: list[tuple[str, int, bytes]]) -> None:
        message = {"op": ORDERS, "session": self._session, "orders": orders}
        self._loop.add_callback(self._client._send_to_scheduler, message)

    def _take_answer(self, address: str, session: str, number: int, data: bytes) -> None:
        """In Dask's thread."""
        if session == self._session:
            self._hear(address, number, data)

    def _read(self, address: str, number: int, order: JobOrder) -> None:
        """In the reader's thread: as many recordings at a time as there is room for."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or sum(self._sizes.values()) <= _MOST_BYTES)
            if self._is_closed or number not in self._given:
                return
            self._sizes[number] = sum(state.size for state in order.job.states)
        try:
            whole = replace(order, contents={s.path: Path(s.path).read_bytes() for s in order.job.states})
            self._post([(address, number, pickle.dumps(whole, pickle.HIGHEST_PROTOCOL))])
        except Exception as error:  # noqa: BLE001  a file is gone, or there is no memory for it: nobody else says so
            self._fail(number, error)
