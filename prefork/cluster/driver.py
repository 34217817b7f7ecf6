"""The driver's side of a cluster: for a run, what a Runtime is on one machine.

A thread of its own has all state: units are given to machines, answers come back, machines come and go. Short jobs are
given as a whole. Of a long one the driver takes the steps itself, as a supervisor does, and gives the tasks away, so
that its segments go to all machines.
"""

from __future__ import annotations

import pickle
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from distributed import Client

from prefork.cluster.control import Control, Workers
from prefork.cluster.dispatching import Dispatch, Machine, MachineState, Unit
from prefork.cluster.intake import Intake
from prefork.cluster.machine import MachinePlugin
from prefork.cluster.messages import PLUGIN, TOPIC, Answer, MachineReport, Session, describe_version
from prefork.cluster.orders import Orders
from prefork.cluster.watching import reserve
from prefork.cluster.work import Done, Work, Writer, explain_size, find_change
from prefork.engines.base import InputError, Job, LoadError
from prefork.errors import Stopped, WorkerDied
from prefork.pool.jobs import Course
from prefork.pool.pipeline import Pipeline
from prefork.pool.runtime import Runtime
from prefork.run.summary import MachineStatus
from prefork.wire.exceptions import describe_error, unpickle_error

_TICK_SECONDS = 0.25
_PATIENCE = 300.0  # seconds for a first machine to come, or another one when all are gone
_REFUSED_PATIENCE = 10.0  # the same where all that came were refused
_AHEAD = 2_000  # units that wait, at the least, where there are more jobs
_END_SECONDS = 30.0  # for the machines to end their processes and report
_STOPPED = "the run was stopped"
_LOST = "the scheduler of the cluster cannot be reached any more; start it, and give the same command again"


class Cluster:
    """Has the machines of a Dask cluster for one session."""

    def __init__(
        self,
        client: Client,
        session: Session,
        notice: Callable[[str], None],
        log: Callable[[str], None] = lambda _: None,
        may_come: bool = True,
    ) -> None:
        """may_come: machines may join later; else there are those that there are. Raises LoadError if another run has
        them, or the scheduler is of another version."""
        self.pipeline: Pipeline = session.pipeline
        self.reports: list[MachineReport] = []
        self.supervisor = Control(self, self.reports)
        self.plans: dict[str, Mapping[str, Any]] = {}  # of a dry session, by machine
        self._client = client
        self._session = session
        self._notice = notice
        self._log = log
        self._patience = _PATIENCE if may_come else _REFUSED_PATIENCE
        self._dispatch = Dispatch()
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._statuses: dict[str, MachineStatus] = {}
        self._ends = float("inf")  # seconds of time.monotonic, when what runs is given up
        self._over = False
        self._ending: dict[str, int] = {}  # numbers of the orders to end, by the machine
        self._without = time.monotonic()  # since when no machine can do anything
        self._local: Runtime | None = None  # for what needs no model
        self._writer = Writer()
        self._intake = Intake(self._dispatch, self._writer, self._drop)
        what = f"prefork {session.command} on {socket.gethostname()}"
        refusal = client.run_on_scheduler(reserve, client=client.id, what=what, version=describe_version())
        if refusal:
            raise LoadError(refusal)
        client.subscribe_topic(TOPIC, self._hear)
        self._orders = Orders(client, session.id, self._answer, self._fail)
        data = pickle.dumps(session, pickle.HIGHEST_PROTOCOL)
        client.register_plugin(MachinePlugin(session.id, describe_version(), data), name=PLUGIN)
        self._thread = threading.Thread(target=self._run, name="prefork-cluster", daemon=True)
        self._thread.start()

    # -- what a run asks for, from its thread --------------------------------------------------------------------------

    @property
    def fingerprints(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of the machines are the driver's: others were refused."""
        return {}

    @property
    def plan(self) -> Workers:
        """Of all machines together."""
        return Workers(max(1, sum(machine.workers for machine in self.list_machines())))

    def wait_until_loaded(self) -> None:
        """Raises LoadError if no machine can do anything."""
        self.supervisor.loaded.wait()
        if self.supervisor.failure is not None:
            raise self.supervisor.failure

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """For what is done to a data set's files, which the driver alone writes: in workers of this machine, without a
        model."""
        if self._local is None:
            self._local = Runtime(command="rows", notice=self._notice, log=self._log)
        return self._local.submit(fn, *args, **kwargs)

    def list_machines(self) -> list[MachineStatus]:
        return sorted(self._statuses.copy().values(), key=lambda machine: machine.name)

    def run_jobs(
        self,
        jobs: Iterable[Job],
        course: Course,
        done: Done,
        documents: Mapping[str, bytes] | None = None,
    ) -> None:
        """As `prefork.pool.runtime.run_jobs`; outputs are written here."""
        ordered = sorted(jobs, key=lambda job: -job.seconds)
        self._events.put(partial(self._intake.add, ordered, course, done, documents or {}))

    def give_up(self, error: LoadError) -> None:
        self._events.put(partial(self._fail_all, error))

    def drain(self, seconds: float) -> None:
        """Nothing new begins; what runs may end within so many seconds."""
        self._events.put(partial(self._drain, time.monotonic() + seconds))

    def shutdown(self, wait: bool = True) -> None:
        """Ends what the machines have loaded, and has their reports."""
        self._events.put(self._close)
        if wait:
            self._thread.join()
        self._writer.close()
        if self._local is not None:
            self._local.shutdown()

    # -- Dask's threads ------------------------------------------------------------------------------------------------

    def _hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        self._events.put(partial(self._take_event, event[1]))

    def _answer(self, address: str, number: int, data: bytes) -> None:
        self._events.put(partial(self._take_answer, address, number, data))

    def _fail(self, number: int, error: Exception) -> None:
        self._events.put(partial(self._take_unread, number, error))

    # -- the cluster's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._over:
                try:
                    self._events.get(timeout=_TICK_SECONDS)()
                    while not self._over:
                        self._events.get_nowait()()
                except queue.Empty:
                    pass
                if not self._over:
                    self._give_all()
                    self._tick()
        except BaseException as error:  # noqa: BLE001  nobody else is there to say it
            self._fail_all(error)
            self._close()
        finally:
            self.supervisor.loaded.set()

    def _take_event(self, event: Mapping[str, Any]) -> None:
        address, kind = str(event.get("address")), event.get("event")
        if kind == "lost":
            self._lose(address, in_order=False)
            return
        if kind == "leaving":
            self._lose(address, in_order=True)
            return
        if event.get("session") != self._session.id:
            return
        known = self._dispatch.machines.get(address)
        if known is not None and known.state is MachineState.LEFT:
            return
        name = str(event.get("name"))
        if known is None:
            self._dispatch.join(address, name)
            self._statuses[address] = MachineStatus(name, str(MachineState.LOADING))
        shown = self._statuses[address]
        if kind == "ready":
            self._dispatch.make_ready(address, int(event["room"]))
            state = f"{event['strategy']}, {event['device']}"
            self._statuses[address] = replace(shown, state=state, workers=int(event["workers"]))
            self._dispatch.machines[address].blind = bool(event["blind"])
            self.supervisor.loaded.set()
        elif kind == "planned":
            self.plans[name] = event["plan"]
            self._dispatch.refuse(address, "planned")
        elif kind == "refused":
            self._refuse(address, str(event["reason"]))
        elif kind == "status" and known is not None and known.state is MachineState.READY:
            workers, busy, memory = (int(event[key]) for key in ("workers", "busy", "memory"))
            self._statuses[address] = replace(shown, workers=workers, busy=busy, memory=memory)

    def _refuse(self, address: str, reason: str) -> None:
        """It gets nothing more."""
        machine = self._dispatch.machines[address]
        if machine.state in (MachineState.READY, MachineState.LOADING):
            for unit in list(machine.units):
                self._cancel(unit, address)
            self._dispatch.refuse(address, reason)
            self._statuses[address] = replace(self._statuses[address], state="refused", busy=0)
            self._notice(f"machine {machine.name} does not take part: it {reason}")

    def _lose(self, address: str, in_order: bool) -> None:
        machine = self._dispatch.machines.get(address)
        if machine is None or machine.state is MachineState.LEFT:
            return
        had = list(machine.units)
        was_refused = machine.state is MachineState.REFUSED
        self._ending.pop(address, None)
        ended = self._dispatch.leave(address, in_order)
        for unit in had:
            self._cancel(unit, address)
        if not was_refused and not self._over:
            again = f"; what it had begun ({len(had)}) is done elsewhere" if had else ""
            self._notice(f"machine {machine.name} {'has left' if in_order else 'was lost'}{again}")
        self._statuses[address] = replace(self._statuses[address], state="left" if in_order else "lost", busy=0)
        for unit in ended:
            names = " and ".join(self._dispatch.machines[lost].name for lost in unit.losses)
            unit.payload.fail(
                WorkerDied(f"the machines {names} were lost while they had it; look there, and give the command again")
            )

    # -- units -----------------------------------------------------------------------------------------------------

    def _give_all(self) -> None:
        """To every machine what it has room for."""
        given = True
        while given:
            self._intake.begin(_AHEAD)
            given = self._give(self._dispatch.assign(time.monotonic()))
        self._orders.send()

    def _give(self, given: Sequence[tuple[Machine, Unit]]) -> bool:
        for machine, unit in given:
            work: Work = unit.payload
            work.numbers[machine.address] = self._orders.give(unit, machine.address, work.order, machine.blind)
        return bool(given)

    def _drop(self, unit: Unit) -> None:
        """Nobody wants it any more."""
        self._dispatch.drop(unit)
        for address in list(unit.payload.numbers):
            self._cancel(unit, address)

    def _cancel(self, unit: Unit, address: str) -> None:
        number = unit.payload.numbers.pop(address, None)
        if number is not None:
            self._orders.take(number)

    def _take_unread(self, number: int, error: Exception) -> None:
        """A file could not be read that was to be sent."""
        given = self._orders.take(number)
        if given is not None and not given[0].over:
            self._drop(given[0])
            given[0].payload.fail(find_change(given[0].payload.order.job) or error)

    def _take_answer(self, address: str, number: int, data: bytes) -> None:
        answer: Answer = pickle.loads(data)
        if self._ending.get(address) == number:
            del self._ending[address]
            self.reports += [pickle.loads(answer.value)] if answer.value is not None else []
            return
        given = self._orders.take(number)
        if given is None or given[0].over:
            return
        unit, machine = given[0], self._dispatch.machines[address]
        work: Work = unit.payload
        del work.numbers[address]
        if answer.unseen:
            if (change := find_change(work.order.job)) is not None:  # it is not there for anybody any more
                self._drop(unit)
                work.fail(change)
                return
            if not machine.blind:
                machine.blind = True
                self._notice(f"machine {machine.name} does not see {answer.unseen}; recordings are sent to it")
            self._dispatch.give_back(unit, address)
        elif answer.lost:
            self._dispatch.give_back(unit, address)
            self._refuse(address, "has lost its processes")
        elif answer.error is not None:
            self._take_error(unit, address, unpickle_error(answer.error))
        elif self._dispatch.finish(unit, address, time.monotonic()):
            shown = self._statuses[address]
            self._statuses[address] = replace(shown, files=machine.done, seconds=machine.seconds)
            self._drop(unit)
            work.take(answer)

    def _take_error(self, unit: Unit, address: str, error: BaseException) -> None:
        """An input that cannot be processed can be on no machine; all else may be this machine's fault."""
        if isinstance(error, InputError) or self._dispatch.fail(unit, address):
            self._drop(unit)
            unit.payload.fail(error)
        if self._dispatch.fails_at_all(address):
            self._refuse(address, f"has failed at everything it was given ({describe_error(error)})")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        if now > self._ends or self._client.status != "running":
            self._fail_all(Stopped(_STOPPED) if now > self._ends else LoadError(_LOST))
            return
        self._give(self._dispatch.assign_slow(now))
        for unit in self._dispatch.take_hopeless():
            unit.payload.fail(explain_size(unit.payload.order.job))
        if self._dispatch.usable:
            self._without = now
            return
        refused = {m.name: m.reason for m in self._dispatch.machines.values() if m.state is MachineState.REFUSED}
        waited = now - self._without
        if waited > (_REFUSED_PATIENCE if refused else self._patience) and self.supervisor.failure is None:
            why = "; ".join(f"{name} {reason}" for name, reason in list(refused.items())[:5])
            self._fail_all(
                LoadError(
                    f"no machine of the cluster can take part ({why or f'none has joined for {waited:.0f} s'}); "
                    "have one join: prefork join FILE"
                )
            )

    def _drain(self, until: float) -> None:
        self._ends = min(self._ends, until)
        self._intake.refuse(Stopped(_STOPPED))
        for unit in self._dispatch.list_left():
            if not unit.machines and not unit.over:
                self._dispatch.drop(unit)
                unit.payload.fail(Stopped(_STOPPED))
        if not any(machine.state is MachineState.READY for machine in self._dispatch.machines.values()):
            self.supervisor.loaded.set()

    def _fail_all(self, error: BaseException) -> None:
        """Nothing more can be done."""
        if not isinstance(error, Stopped):
            self.supervisor.failure = self.supervisor.failure or error
        self.supervisor.loaded.set()
        self._ends = 0.0 if self._ends == float("inf") else self._ends
        self._intake.refuse(error)
        for unit in self._dispatch.list_left():
            if not unit.over:  # a job that fails takes its other units with it
                self._drop(unit)
                unit.payload.fail(error)

    def _close(self) -> None:
        if self._over:
            return
        self._over = True
        self._orders.close()
        for machine in self._dispatch.machines.values():
            if machine.state in (MachineState.READY, MachineState.REFUSED):
                self._ending[machine.address] = self._orders.end(machine.address)
        try:
            self._orders.send()
            deadline = time.monotonic() + _END_SECONDS
            while self._ending and time.monotonic() < deadline and self._client.status == "running":
                with suppress(queue.Empty):
                    self._events.get(timeout=_TICK_SECONDS)()
            self._client.unsubscribe_topic(TOPIC)
            self._client.unregister_worker_plugin(PLUGIN)
        except Exception as error:  # noqa: BLE001  the machines end theirs without being told, once we are gone
            self._log(f"the machines could not be told to end: {error}\n")
