"""In Dask's scheduler: one run at a time has the machines, and is told who is gone; when it is gone, they are free. Its
orders are passed on to them, and their answers to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from prefork.cluster.messages import ANSWER, ORDER, ORDERS, PLUGIN, TOPIC, WATCH, describe_version


class Watch(SchedulerPlugin):
    """holder: the client of the run that has the machines. what: it is, for people."""

    name = WATCH

    def __init__(self, scheduler: Scheduler, holder: str, what: str) -> None:
        self.holder = holder
        self.what = what
        self._scheduler = scheduler
        self._ending: asyncio.Task[Any] | None = None
        scheduler.stream_handlers |= {ORDERS: self.pass_orders, ANSWER: self.pass_answer}

    def pass_orders(self, client: str, session: str, orders: Iterable[tuple[str, int, bytes]]) -> None:
        """orders: address, number and content of each. One to a machine that is gone is lost; the holder is told who
        is."""
        for address, number, data in orders if client == self.holder else ():
            if address in self._scheduler.stream_comms:
                self._scheduler.worker_send(address, {"op": ORDER, "session": session, "number": number, "data": data})

    def pass_answer(self, worker: str, session: str, number: int, data: bytes) -> None:
        answer = {"op": ANSWER, "address": worker, "session": session, "number": number, "data": data}
        self._scheduler.client_send(self.holder, answer)

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:  # noqa: ARG002
        scheduler.log_event(TOPIC, {"event": "lost", "address": worker})

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """The machines unload what they have loaded for a run that is gone, however it has ended."""
        if client == self.holder:
            self.holder = ""
            if PLUGIN in scheduler.worker_plugins:
                self._ending = asyncio.ensure_future(scheduler.unregister_worker_plugin(None, PLUGIN))


async def reserve(client: str, what: str, version: str, dask_scheduler: Scheduler | None = None) -> str:
    """The machines are this client's from here on; or, why they are not."""
    assert dask_scheduler is not None
    if version != describe_version():
        return f"the scheduler has {describe_version()}, and this is {version}; install the same on both"
    watch: Any = dask_scheduler.plugins.get(WATCH)
    if watch is not None and watch.holder != client and watch.holder in dask_scheduler.clients:
        return f"another run ({watch.what}) has the machines of this cluster; wait for it"
    if watch is not None:
        dask_scheduler.remove_plugin(WATCH)
    dask_scheduler.add_plugin(Watch(dask_scheduler, client, what), name=WATCH)
    if PLUGIN in dask_scheduler.worker_plugins:
        await dask_scheduler.unregister_worker_plugin(None, PLUGIN)
    return ""
