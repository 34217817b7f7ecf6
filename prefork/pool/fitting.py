"""How many workers memory allows, as it is measured. Pure: see `prefork.pool.state`."""

from __future__ import annotations

from collections.abc import Mapping

from prefork.pool.actions import Outbox
from prefork.pool.policy import Policy
from prefork.pool.scheduling import Scheduler
from prefork.pool.workers import Workers
from prefork.wire.messages import Memory

_GUARD_SECONDS = 4.0  # that what runs may go on for when memory gets too short and --mem-guard stops the run


class Fitting:
    """exhausted: why the run was stopped: memory was too short."""

    def __init__(self, outbox: Outbox, workers: Workers, scheduler: Scheduler, policy: Policy) -> None:
        self.exhausted = ""
        self._outbox = outbox
        self._workers = workers
        self._scheduler = scheduler
        self._policy = policy

    def take(self, memory: Mapping[int, Memory]) -> None:
        """All were measured, by number. As many workers as memory allows: fewer when it is short, more again later."""
        for worker in self._workers.all.values():
            worker.memory = memory.get(worker.number) or worker.memory
            if worker.task and worker.memory:
                worker.task.peak = max(worker.task.peak, worker.memory.uss)
        if not self._scheduler.is_draining:
            self._fit()

    def _fit(self) -> None:
        policy, workers = self._policy, self._workers
        busy, size = workers.list_busy(), workers.size
        if policy.must_stop() and not self.exhausted:
            self.exhausted = policy.why
            self._outbox.notify(f"stopping: {policy.why} (--mem-guard)")
            self._scheduler.drain(self._outbox.now + _GUARD_SECONDS)
        elif busy and policy.must_end_one([worker.memory.uss for worker in busy if worker.memory]):
            worker = max(busy, key=lambda w: w.memory.uss - w.predicted if w.memory else 0)
            worker.out_of_memory = True
            workers.kill(worker, f"was stopped, because memory was too short ({policy.why})")
        elif size > 1 and len(workers.all) <= size and policy.must_shrink():
            policy.shrink(size - 1)
            size -= 1
        elif 0 < size < workers.plan.workers and policy.may_grow(workers.plan):
            policy.grow(size + 1)
            size += 1
        workers.resize(size)
