"""The processes of a cluster: `prefork cluster start`, the scheduler, and `prefork join`, a machine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed import Worker

from prefork.cluster.connecting import (
    QuietScheduler,
    WithoutWebServer,
    describe_refusal,
    find_place,
    make_client,
    write_file,
)
from prefork.cluster.handshake import Place, UnreachableError, check_scheduler
from prefork.cluster.machine import close_all
from prefork.cluster.messages import TOPIC, MachineOptions
from prefork.cluster.security import is_loopback, read_certificates
from prefork.engines.base import LoadError
from prefork.platform_matrix.systems import SYSTEM

_BROKEN = ("worker-handle-scheduler-connection-broken", "worker-heartbeat-missing", "scheduler-remove-worker")
_CLOSE_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_JOIN_SECONDS = 15.0  # for one try to connect


class JoinedWorker(WithoutWebServer, Worker):
    """Dask's worker, for a machine with its own options, without its web server. comes_again: only its connection is
    lost."""

    machine_name = ""
    machine_options = MachineOptions()
    comes_again = False
    is_leaving = False

    async def close(  # type: ignore[override]
        self,
        timeout: float = _CLOSE_SECONDS,
        executor_wait: bool = False,  # noqa: ARG002
        nanny: bool = True,
        reason: str = "worker-close",
    ) -> str | None:
        """Does not wait for its threads: they wait for a Runtime, which goes on or is ended."""
        self.comes_again = self.comes_again or (reason in _BROKEN and not self.is_leaving)
        return await super().close(timeout, False, nanny, reason)


def run_scheduler(path: Path, host: str | None, port: int, tls: Path | None, notice: Callable[[str], None]) -> None:
    """Until it is ended by a signal or by `stop`. Raises LoadError: without certificates nobody else may reach it."""
    if tls is None and not is_loopback(host or ""):
        raise LoadError(
            "without certificates, whoever reaches the scheduler can run anything on the cluster; make them with "
            "prefork cluster init DIR and give --tls DIR, or give --host 127.0.0.1"
        )
    security = read_certificates(tls) if tls is not None else None
    SYSTEM.raise_descriptors()  # a connection for each machine

    async def serve(ended: asyncio.Event) -> None:
        scheduler = QuietScheduler(
            host=host,
            port=port,
            protocol="tls://" if security is not None else "tcp://",
            security=security,
            dashboard=False,
        )
        async with scheduler:
            write_file(path, scheduler.address, tls)
            notice(f"the scheduler listens at {scheduler.address}; machines join with: prefork join {path}")
            await _wait_for_either(scheduler.finished(), ended)
        with suppress(LoadError, OSError):
            if find_place(str(path), tls).address == scheduler.address:  # else it is by now another scheduler's
                path.unlink()

    try:
        asyncio.run(_with_signals(serve))
    except OSError as error:
        raise LoadError(f"the scheduler cannot listen: {error.strerror or error}; give --host or --port") from error


def stop_scheduler(text: str, tls: Path | None) -> None:
    """Ends it and all its machines. Raises LoadError."""
    place = find_place(text, tls)
    try:
        with make_client(place) as client:
            client.shutdown()
    except (OSError, TimeoutError) as error:
        raise LoadError(f"{place.address}: the scheduler does not answer; it may have ended") from error


def join(
    text: str, tls: Path | None, options: MachineOptions, name: str, patience: float, notice: Callable[[str], None]
) -> None:
    """Offers this machine to a scheduler until that ends, or a signal comes. patience: seconds to wait for a scheduler
    that is not there yet, or cannot be reached any more; 0: not for one that was there. Raises LoadError if none is
    found, and at once if waiting does not help."""
    may_come_again = patience > 0
    name = name or socket.gethostname()
    patience = max(patience, _JOIN_SECONDS)

    async def serve(ended: asyncio.Event) -> None:
        deadline, joined, told = time.monotonic() + patience, False, False
        while not ended.is_set():
            if joined and "://" not in text and not Path(text).exists():
                return  # the scheduler has ended in order, and has taken its file with it
            try:
                place = find_place(text, tls)
                worker = await _start(place, options, name, ended)
            except UnreachableError as error:
                if time.monotonic() >= deadline:
                    raise
                if not told and not joined:
                    notice(f"{error}; waits for it for {patience:.0f} s")
                    told = True
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if worker is None:
                return
            notice(f"{name} has joined {place.address}")
            joined = True
            await _wait_for_either(worker.finished(), ended)
            if ended.is_set():
                worker.is_leaving = True
                worker.log_event(TOPIC, {"event": "leaving", "address": worker.address})
                await worker.close()
            if not worker.comes_again or not may_come_again:
                return
            await asyncio.sleep(_RETRY_SECONDS)
            if Path(text).exists() or "://" in text:
                notice(f"{name} has lost its connection to {place.address}, and tries again for {patience:.0f} s")
            deadline = time.monotonic() + patience

    try:
        asyncio.run(_with_signals(serve))
    finally:
        close_all()


async def _start(place: Place, options: MachineOptions, name: str, ended: asyncio.Event) -> JoinedWorker | None:
    """A worker that is connected; None if it is not to be any more. Raises LoadError."""
    starting = asyncio.ensure_future(_connect(place, options, name))
    await _wait_for_either(starting, ended)
    if ended.is_set():
        starting.cancel()
        return None
    return await starting


async def _connect(place: Place, options: MachineOptions, name: str) -> JoinedWorker:
    await asyncio.to_thread(check_scheduler, place)
    loopback = place.address.startswith("tcp://")  # without certificates nobody else may reach the worker either
    worker = JoinedWorker(
        place.address,
        nthreads=1,
        name=f"{name}-{os.getpid()}-{time.monotonic_ns()}",
        memory_limit=0,
        local_directory=tempfile.gettempdir(),
        security=place.security,
        host="127.0.0.1" if loopback else None,
        death_timeout=_JOIN_SECONDS,
    )
    worker.machine_name, worker.machine_options = name, options
    try:
        await worker
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise UnreachableError(describe_refusal(place, error)) from error
    return worker


async def _wait_for_either(awaitable: Awaitable[Any], ended: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(awaitable), asyncio.ensure_future(ended.wait())]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    waiting[1].cancel()


async def _with_signals(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """SIGINT and SIGTERM end it in order; a second one at once."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        if ended.is_set():
            close_all()
            os._exit(130)
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, end)
        except NotImplementedError:  # an event loop of Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(end))
    await serve(ended)
