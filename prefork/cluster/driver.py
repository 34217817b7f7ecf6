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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client

from prefork.cluster.control import Control, Workers
from prefork.cluster.dispatching import Dispatch, Machine, MachineState, Unit
from prefork.cluster.machine import MachinePlugin, MachineReport, describe_version, end_session, run_order
from prefork.cluster.messages import PLUGIN, SEND_BYTES, TOPIC, Answer, JobOrder, Session
from prefork.cluster.watching import reserve
from prefork.cluster.work import Collector, Done, LongJob, Work, Writer, explain_size
from prefork.engines.base import InputError, Job, LoadError
from prefork.errors import Stopped, WorkerDied
from prefork.pool.jobs import Course, JobResult, JobRun
from prefork.pool.pipeline import Pipeline
from prefork.pool.runtime import Runtime
from prefork.run.summary import MachineStatus
from prefork.wire.exceptions import describe_error, unpickle_error

LONG_SECONDS = 600.0  # of a recording whose segments go to all machines
_TICK_SECONDS = 0.25
_PATIENCE = 300.0  # seconds for a first machine to come, or another one when all are gone
_REFUSED_PATIENCE = 10.0  # the same where all that came were refused
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
        them."""
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
        self._rank = 0
        self._number = 0
        self._without = time.monotonic()  # since when no machine can do anything
        self._local: Runtime | None = None  # for what needs no model
        self._writer = Writer()
        what = f"prefork {session.command} on {socket.gethostname()}"
        holder = client.run_on_scheduler(reserve, client=client.id, what=what)
        if holder:
            raise LoadError(f"another run ({holder}) has the machines of this cluster; wait for it")
        client.subscribe_topic(TOPIC, self._hear)
        data = pickle.dumps(session, pickle.HIGHEST_PROTOCOL)
        client.register_plugin(MachinePlugin(session.id, describe_version(), data), name=PLUGIN)
        self._thread = threading.Thread(target=self._run, name="prefork-cluster", daemon=True)
        self._collector = Collector(client, self._answer, log)
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
        known = documents or {}
        for job in sorted(jobs, key=lambda job: -job.seconds):
            self._rank += 1
            self._events.put(partial(self._begin, job, self._rank, course, done, known.get(job.id)))

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
            self._collector.close()
        self._writer.close()
        if self._local is not None:
            self._local.shutdown()

    # -- Dask's threads ------------------------------------------------------------------------------------------------

    def _hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        self._events.put(partial(self._take_event, event[1]))

    def _answer(self, unit: Unit, address: str, data: bytes | None, failure: BaseException | None) -> None:
        self._events.put(partial(self._take_answer, unit, address, data, failure))

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
                    self._give(self._dispatch.assign(time.monotonic()))
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

    def _begin(self, job: Job, rank: int, course: Course, done: Done, document: bytes | None) -> None:
        if self.supervisor.failure is not None or self._ends < float("inf"):
            done(JobResult(job, error=self.supervisor.failure or Stopped(_STOPPED)))
        elif job.seconds > LONG_SECONDS and job.states and not self._is_any_blind:
            runner, finish = LongJob(job, self._dispatch.add, self._drop), self._writer.finish(job, course, done)
            JobRun(runner, None, replace(course, target=None), job, rank, finish, document).start()
        else:
            order = JobOrder(job, document, course.passing)
            fail = partial(self._fail_job, job, course, done)
            work = Work(order, partial(self._take_job, job, course, done), fail)
            sendable = bool(job.states) and sum(state.size for state in job.states) <= SEND_BYTES
            self._dispatch.add(Unit((rank, 0, 0), job.seconds, work, sendable))

    @property
    def _is_any_blind(self) -> bool:
        return any(machine.blind for machine in self._dispatch.usable)

    def _take_job(self, job: Job, course: Course, done: Done, answer: Answer) -> None:
        document, passed = pickle.loads(answer.value or b"")
        course.advance(job.seconds)
        self._writer.finish(job, course, done)(JobResult(job, document, passed=passed))

    def _fail_job(self, job: Job, course: Course, done: Done, error: BaseException) -> None:
        course.advance(job.seconds)
        done(JobResult(job, error=error))

    # -- units -----------------------------------------------------------------------------------------------------

    def _give(self, given: Sequence[tuple[Machine, Unit]]) -> None:
        for machine, unit in given:
            work: Work = unit.payload
            order = work.order
            try:
                if machine.blind and isinstance(order, JobOrder):
                    order = replace(order, contents={s.path: Path(s.path).read_bytes() for s in order.job.states})
                self._number += 1
                future = self._client.submit(
                    run_order,
                    pickle.dumps(order, pickle.HIGHEST_PROTOCOL),
                    workers=[machine.address],
                    key=f"prefork-{self._session.id}-{self._number}",
                    pure=False,
                )
            except OSError as error:  # a file is gone
                self._dispatch.drop(unit)
                work.fail(error)
                continue
            work.futures[machine.address] = future
            self._collector.watch(unit, machine.address, future)

    def _drop(self, unit: Unit) -> None:
        """Nobody wants it any more."""
        self._dispatch.drop(unit)
        for address in list(unit.payload.futures):
            self._cancel(unit, address)

    def _cancel(self, unit: Unit, address: str) -> None:
        future = unit.payload.futures.pop(address, None)
        if future is not None:
            future.cancel()

    def _take_answer(self, unit: Unit, address: str, data: bytes | None, failure: BaseException | None) -> None:
        """What a machine has answered; None if its result is gone. failure: Dask could not have it run."""
        work: Work = unit.payload
        future = work.futures.pop(address, None)
        machine = self._dispatch.machines[address]
        if unit.over or future is None or address not in unit.machines:
            return
        if failure is not None:
            self._take_error(unit, address, failure)
            return
        answer: Answer = pickle.loads(data) if data is not None else Answer(lost=True)
        if answer.unseen:
            if not machine.blind:
                machine.blind = True
                self._notice(f"machine {machine.name} does not see {answer.unseen}; recordings are sent to it")
            self._dispatch.give_back(unit, address)
        elif answer.lost:
            self._dispatch.give_back(unit, address)
            if data is not None:
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
        for unit in self._dispatch.list_left():
            if not unit.over:  # a job that fails takes its other units with it
                self._drop(unit)
                unit.payload.fail(error)

    def _close(self) -> None:
        self._over = True
        known = self._dispatch.machines.values()
        addresses = [m.address for m in known if m.state in (MachineState.READY, MachineState.REFUSED)]
        key = f"prefork-{self._session.id}-end"
        try:
            self._client.unsubscribe_topic(TOPIC)
            futures = [
                self._client.submit(end_session, workers=[address], key=f"{key}-{number}", pure=False)
                for number, address in enumerate(addresses)
            ]
            deadline = time.monotonic() + _END_SECONDS
            while not all(future.done() for future in futures) and time.monotonic() < deadline:
                time.sleep(0.05)
            ended = [future for future in futures if future.status == "finished"]
            self.reports += map(pickle.loads, self._client.gather(ended, errors="skip"))
            self._client.unregister_worker_plugin(PLUGIN)
        except Exception as error:  # noqa: BLE001  the machines end theirs without being told, once we are gone
            self._log(f"the machines could not be told to end: {error}\n")
