"""Devices that fail while a pool computes on them: who is to blame, and what is computed on next. Pure: see
`prefork.pool.state`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from prefork.platform_matrix.failed_devices import give_up
from prefork.platform_matrix.matrix import Plan, Strategy
from prefork.pool.actions import Outbox
from prefork.pool.device_record import DeviceRecord
from prefork.pool.tasks import ATTEMPTS
from prefork.pool.workers import Death, Worker, Workers


class FailingDevices:
    """next_plan: takes the place of the workers' plan once all processes are gone; None unless a device was given up.

    fail: called with the reason if nothing is left to compute on. end_all: has all processes end.
    """

    def __init__(
        self, outbox: Outbox, workers: Workers, fail: Callable[[str], None], end_all: Callable[[], None]
    ) -> None:
        self.next_plan: Plan | None = None
        self._outbox = outbox
        self._workers = workers
        self._fail = fail
        self._end_all = end_all
        self._records: defaultdict[int, DeviceRecord] = defaultdict(DeviceRecord)  # of workers' devices, by place

    def note_done(self, worker: Worker) -> None:
        """It has done something on its device."""
        self._records[self._workers.find_place(worker.slot)].note_done()

    def take_next_plan(self) -> Plan | None:
        """Once, and not before all processes are gone."""
        plan, self.next_plan = self.next_plan, None
        self._records.clear()
        return plan

    def excuses(self, death: Death) -> bool:
        """Whether a task is not to blame for the end of its worker: all workers are replaced, or its device failed."""
        if self.next_plan is not None:
            return True
        place, broken, record = death.place, death.broken, self._records[death.place]
        if not self._compute or (broken is None and not death.unended):
            return False
        if death.unended or (broken is not None and broken.device_failed):
            if death.unended or record.note_fault():
                self.give_up(place, death.reason)
            else:
                self._outbox.notify(f"{death.task.label}: {death.reason}; retrying it on a new worker")
            return True
        if death.task.attempts + 1 < ATTEMPTS or record.blames() or not self.can_spare(place):
            return False
        self.give_up(place, f"{death.reason}, with every segment that it was given")
        return True

    def note_failed_start(self, worker: Worker) -> None:
        """If a worker has ended before it was ready, and it was its device's fault."""
        place = self._workers.find_place(worker.slot)
        is_fault = worker.ready is None and worker.broken is not None and worker.broken.device_failed
        if is_fault and self._workers.plan.devices and self._records[place].note_fault():
            assert worker.broken is not None
            self.give_up(place, f"{worker.name}: {worker.broken.reason}")

    @property
    def _compute(self) -> bool:
        """Whether workers use devices by themselves: what becomes of those that ask a server says nothing of one."""
        plan = self._workers.plan
        return bool(plan.devices) and plan.strategy is not Strategy.SERVER

    def can_spare(self, place: int) -> bool:
        """Whether work can go on without this device."""
        return not give_up(self._workers.plan, place, "it fails").refusal

    def give_up(self, place: int, reason: str) -> None:
        """A device is used no more. All is loaded again on what is left, and no task is to blame."""
        if self.next_plan is not None or self._workers.is_closed:
            return
        old = self._workers.plan
        plan, label = give_up(old, place, reason), old.labels[place]
        if plan.refusal:
            self._fail(plan.refusal)
            return
        where = ", ".join(plan.labels) or "the CPU"
        self._outbox.notify(f"{label} is used no more: {reason}; the models are loaded again, on {where}")
        self.next_plan = plan
        self._workers.kill_all("was killed, because its device had failed")
        self._end_all()

    def give_up_unended(self, limit: float) -> bool:
        """If a worker was killed so many seconds ago and does not end, its device. Whether there was one."""
        worker = self._workers.find_unended(limit) if self._compute else None
        if worker is not None:
            self.give_up(self._workers.find_place(worker.slot), f"{worker.name} was killed there and does not end")
        return worker is not None
