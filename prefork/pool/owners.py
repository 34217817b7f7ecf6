"""The owners of weights on GPUs, which other processes open there. Pure: see `prefork.pool.state`."""

from __future__ import annotations

from prefork.pool.actions import Outbox, SendZygote, StartOwners
from prefork.pool.workers import Workers
from prefork.wire.exports import Export
from prefork.wire.messages import AttachExports


class Owners:
    """One for each device of the workers' plan."""

    def __init__(self, outbox: Outbox, workers: Workers) -> None:
        self._outbox = outbox
        self._workers = workers
        self._exports: dict[int, Export] = {}  # by place

    def start(self, size: int) -> None:
        """The weights are in their file. size: bytes."""
        self._exports.clear()
        self._outbox.do(StartOwners(self._workers.plan, size))

    def take(self, place: int, export: Export) -> None:
        """They are on a device; once they are on all, workers may be forked."""
        self._exports[place] = export
        if len(self._exports) == max(1, len(self._workers.plan.devices)):
            exports = tuple(self._exports[place] for place in sorted(self._exports))
            self._outbox.do(SendZygote(AttachExports(exports), self._workers.generation))
