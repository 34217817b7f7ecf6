"""Work that a service does: it needs no weights, so it runs in threads of the supervisor, never in workers."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from prefork.engines import registry
from prefork.engines.base import Job, LoadError
from prefork.engines.text.document import Document
from prefork.errors import Stopped
from prefork.fingerprint import note_files
from prefork.pool.state import STOPPED
from prefork.pool.supervisor import Supervisor

Done = Callable[[bytes | None, BaseException | None], None]


class Service(Protocol):
    """What is at the other end: an entry point of the group `prefork.services`, whose `Declaration` is one of the group
    `prefork.declarations`, as an engine's is. in_flight: jobs that may be there at once."""

    in_flight: int

    def setup(self) -> None:
        """Raises LoadError if the service cannot be used at all."""

    def transcribe(self, job: Job, document: Document, stopped: threading.Event) -> Document:
        """The document with what the service has heard. Called by several threads at once; returns, or raises, soon
        after `stopped` is set. Raises InputError for this job, LoadError for all."""

    def fingerprint(self) -> Mapping[str, Any]: ...


class Remote:
    """The services of a pipeline. `submit` may be called from any thread; what is done is said in the supervisor's."""

    def __init__(self, supervisor: Supervisor, services: Mapping[str, Mapping[str, Any]]) -> None:
        """services: by name, with their options. Raises LoadError if one cannot be had."""
        self._supervisor = supervisor
        self._services: dict[str, Service] = {}
        self._pools: dict[str, ThreadPoolExecutor] = {}
        for name, options in services.items():
            service: Service = registry.create_service(name, options)
            self._services[name] = service
            self._pools[name] = ThreadPoolExecutor(service.in_flight, f"prefork-{name}")

    def setup(self) -> None:
        """Raises LoadError."""
        for service in self._services.values():
            service.setup()

    def fingerprints(self) -> dict[str, Mapping[str, Any]]:
        return {name: note_files(service.fingerprint()) for name, service in self._services.items()}

    def submit(self, name: str, job: Job, document: bytes | None, done: Done) -> None:
        """done: called with the pickled document, or an error."""
        self._supervisor.expect()
        self._pools[name].submit(self._work, name, job, document, done)

    def close(self) -> None:
        """Lets the threads go, once nothing more is submitted."""
        for pool in self._pools.values():
            pool.shutdown(wait=False)

    def _work(self, name: str, job: Job, document: bytes | None, done: Done) -> None:
        stopped = self._supervisor.interrupted
        result: bytes | None = None
        error: BaseException | None = None
        try:
            if stopped.is_set():
                raise Stopped(STOPPED)
            known = pickle.loads(document) if document is not None else _open(job)
            result = pickle.dumps(self._services[name].transcribe(job, known, stopped), pickle.HIGHEST_PROTOCOL)
        except LoadError as problem:
            error = problem
            self._supervisor.give_up(problem)
        except BaseException as problem:  # noqa: BLE001  whatever a service raises is this job's error
            error = Stopped(STOPPED) if stopped.is_set() else problem
        self._supervisor.deliver(lambda: done(result, error))


def _open(job: Job) -> Document:
    from prefork.engines.text import formats  # who has no service needs none of them

    return formats.open_document(job.source, job.media, job.seconds, job.language)
