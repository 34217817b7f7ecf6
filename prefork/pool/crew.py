"""The crew: the workers and where they come from, forked by a zygote or spawned. Lives in the supervisor's thread."""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from prefork.engines.base import LoadError
from prefork.memory.governor import ZYGOTE, Governor
from prefork.memory.probe import measure_memory
from prefork.platform_matrix.canary import describe_exit
from prefork.platform_matrix.matrix import Plan, Strategy
from prefork.pool.owners import Owners
from prefork.pool.servers import Servers
from prefork.pool.tasks import HangLimit, Task
from prefork.wire.channel import Channel
from prefork.wire.child import ChildProcess, Output, find_last_words
from prefork.wire.environment import hide_gpus, make_environment
from prefork.wire.loop import Loop
from prefork.wire.memory_file import MemoryFile
from prefork.wire.messages import Export, Inventory, Memory, Specification

_BARREN_STARTS = 3  # zygotes, or workers, that may die in a row before anything gets done
_BOOT_SECONDS = 30.0  # from the request to fork to a worker's first message; it takes 20 ms
_EXIT_SECONDS = 2.0  # how long a process may take to end by itself


@dataclass(slots=True, eq=False)
class Worker:
    slot: int  # 0 .. workers-1: what the user sees
    number: int  # never used again in a run
    channel: Channel
    errors: Output
    born: float
    child: ChildProcess | None = None  # if it was not forked by the zygote
    told: bool = True  # what to load; one that was forked has it loaded
    pid: int = 0
    ready: float | None = None  # seconds from the request to the message that says so
    task: Task | None = None
    tasks: int = 0
    seen: float = 0.0  # when it last made progress
    last_words: bytearray = field(default_factory=bytearray)
    ended: bool = False  # its channel is at its end: it is dead, or will be
    sentence: str = ""  # why we killed it
    starved: bool = False  # we killed it for want of memory
    dismissed: bool = False  # we ended it, and it had nothing to do
    settling: bool = False  # its task is done, and it has not said yet what it took and has given back
    measured: tuple[Task, int] | None = None  # its last task, and what that was predicted to take
    predicted: int = 0  # bytes of its own at the peak of its task
    memory: Memory | None = None
    rest: int = 0  # bytes of its own after its last task
    first_rest: int = 0  # and after its first

    @property
    def name(self) -> str:
        return f"worker {self.slot}"


class Employer(Protocol):
    """Who the workers work for."""

    def hear(self, worker: Worker, kind: str, content: list[Any]) -> None:
        """A message that is about its task."""

    def lose(self, worker: Worker, reason: str, starved: bool) -> None:
        """It died at its task. starved: for want of memory."""

    def requeue(self, task: Task) -> None:
        """Its worker died, and it is not to blame."""

    def note_loaded(self) -> None:
        """There are workers, or will be in a moment."""

    def fail(self, error: LoadError) -> None:
        """There will never be any."""


class Crew:
    """Keeps as many workers as it is told to. notice, log: as for the supervisor; talkative: there is no log."""

    def __init__(
        self,
        specification: Specification,
        loop: Loop,
        governor: Governor,
        employer: Employer,
        notice: Callable[[str], None],
        log: Callable[[str], None],
        talkative: bool,
        hang_limit: HangLimit,
    ) -> None:
        self.plan: Plan | None = None
        self.inventory: Inventory | None = None
        self.workers: dict[int, Worker] = {}
        self.zygote: ChildProcess | None = None
        self.servers: Servers | None = None
        self.size = 0  # workers that there are to be
        self.is_closed = False  # nobody is replaced any more
        self.deaths = 0
        self._specification = specification
        self._loop = loop
        self._governor = governor
        self._employer = employer
        self._notice = notice
        self._log = log
        self._talkative = talkative
        self._hang_limit = hang_limit
        self._opened: Inventory | None = None  # of the process to be forked from, until that is made use of
        self._owners: Owners | None = None
        self._served: Inventory | None = None  # of the servers, once they are ready
        self._numbers = itertools.count()
        self._arena: MemoryFile | None = None
        self._unready = 0  # workers that have died in a row before they could do anything
        self._zygotes_lost = 0  # in a row, without anything done
        self._loading = False  # there is nothing yet to fork from, or to map

    def start(self, plan: Plan) -> None:
        """Has the models loaded as the plan says: by a zygote, or by the first of the workers itself."""
        self.plan = plan = self._governor.recall(plan)
        if plan.refusal:
            self._fail(plan.refusal)
        elif plan.strategy.forks:
            if plan.strategy is Strategy.SERVER and self.servers is None:
                self._start_servers(plan)
            if plan.strategy is Strategy.IPC and self._arena is None:
                self._arena = MemoryFile()
            self._start_zygote()
        else:
            self._loading = True
            if plan.shared and self._arena is None:
                self._arena = MemoryFile()
            self._spawn(0)

    def attend(self) -> None:
        """Buries the dead, has the next one load, and gives up those that never came to life."""
        if self.servers is not None:
            self.servers.attend()
        self._bury()
        self._tell_next()
        now = time.monotonic()
        for worker in list(self.workers.values()):
            late = worker.ready is None and now - worker.born > _BOOT_SECONDS
            if worker.child is None and late and not worker.sentence:
                self.kill(worker, f"was not ready {_BOOT_SECONDS:.0f} s after it was forked and was killed")

    def resize(self, size: int) -> None:
        """To so many workers: missing ones are started, and as many as are too many go as soon as they are idle."""
        self.size = size
        self.refill()
        for worker in self.list_idle()[: max(0, sum(not w.sentence for w in self.workers.values()) - size)]:
            self.dismiss(worker, "was ended, because memory was short")

    def refill(self) -> None:
        missing = 0 if self.is_closed or self._loading else max(0, self.size - len(self.workers))
        for slot in self._list_free_slots()[:missing]:
            self._add(slot)

    def note_success(self) -> None:
        """Something was done."""
        self._zygotes_lost = 0

    def list_idle(self) -> list[Worker]:
        """Those of the device that has least to do first."""
        alive = (w for w in self.workers.values() if w.ready is not None and not (w.ended or w.sentence))
        load = Counter(self._find_device(worker.slot) for worker in self.list_busy())
        return sorted(
            (worker for worker in alive if worker.task is None), key=lambda w: load[self._find_device(w.slot)]
        )

    def _find_device(self, slot: int) -> int:
        """The number, among the plan's devices, of the one that a worker computes on, or whose server it asks."""
        return slot % max(1, len(self.plan.devices)) if self.plan is not None else 0

    def list_clients(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if not worker.ended]

    def is_excused(self, worker: Worker) -> bool:
        """Whether it is not for the worker to make progress now."""
        return self.servers is not None and self.servers.is_at_work(worker)

    def list_busy(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.task]

    def list_pids(self) -> dict[str, int]:
        """Of all processes, by name."""
        pids = {worker.name: worker.pid for worker in self.workers.values() if worker.pid}
        if self.servers is not None:
            pids |= self.servers.list_pids()
        if self._owners is not None:
            pids |= self._owners.list_pids()
        return pids if self.zygote is None else {**pids, ZYGOTE: self.zygote.pid}

    @property
    def is_ending(self) -> bool:
        """Whether one that is not the zygote's child, and that nobody tells of, is about to be gone."""
        return any(worker.child is not None and worker.ended for worker in self.workers.values())

    def dismiss(self, worker: Worker, sentence: str) -> None:
        """Ends a worker that has nothing to do."""
        worker.dismissed = True
        self.kill(worker, sentence)

    def kill(self, worker: Worker, sentence: str) -> None:
        worker.sentence = worker.sentence or sentence
        if worker.child is not None:
            worker.child.kill()
        else:
            self._post_zygote(("kill", worker.number))

    def end(self, at_once: bool) -> list[Task]:
        """Ends every process; the tasks that they had."""
        for worker in self.workers.values():
            self._forget(worker)
        children = [worker.child for worker in self.workers.values() if worker.child is not None]
        until = time.monotonic() + (0.0 if at_once else _EXIT_SECONDS)
        for child in children:
            child.end(max(0.0, until - time.monotonic()))
        if self.zygote is not None:
            self._end_zygote(self.zygote, _EXIT_SECONDS if self.inventory else 0.0)
        self._end_servers()
        self._end_owners()
        if self._arena is not None:
            self._arena.close()
        left = [worker.task for worker in self.workers.values() if worker.task]
        self.workers.clear()
        return left

    def _fail(self, reason: str) -> None:
        self.is_closed = True
        self._employer.fail(LoadError(reason))

    # -- the servers -------------------------------------------------------------------------------------------

    def _start_servers(self, plan: Plan) -> None:
        self.servers = Servers(
            self._specification,
            plan,
            self,
            self._loop,
            self._governor,
            self._hang_limit,
            self._notice,
            self._log,
            self._talkative,
        )

    def _end_servers(self) -> None:
        servers, self.servers, self._served = self.servers, None, None
        if servers is not None:
            self.deaths += servers.deaths
            servers.end()

    def note_served(self, inventory: Inventory) -> None:
        self._served = inventory
        self._go_on()

    def fail_serving(self, reason: str, trace: str = "") -> None:
        self._on_failed(reason, trace)

    # -- the owners of weights on GPUs ------------------------------------------------------------------------

    def _on_packed(self, size: int) -> None:
        """The zygote has the weights in a file; from there they go to every device."""
        assert self.plan is not None and self._arena is not None
        self._owners = Owners(self.plan, self._arena.path, size, self, self._loop, self._log)

    def note_exported(self, exports: Sequence[Export]) -> None:
        self._post_zygote(("attach", exports))

    def lose_weights(self, reason: str) -> None:
        """Whoever reads them is ended, with the zygote that it was forked from; all is loaded anew."""
        if self.zygote is not None and not self.is_closed:
            self._notice(f"{reason}; nothing that was computed since is kept")
            self.zygote.kill()

    def refuse_ipc(self, reason: str) -> None:
        assert self.plan is not None and self.zygote is not None
        self._end_zygote(self.zygote, _EXIT_SECONDS)
        self._end_owners()
        self.inventory = None
        if self._arena is not None:  # it has the weights, which are loaded anew elsewhere
            self._arena.close()
            self._arena = None
        other = self.plan.learn(no_ipc=reason)
        if not other.refusal:
            self._notice(
                f"CUDA IPC does not work here: {reason}; one process has the models instead ({other.strategy})"
            )
        self.start(other)

    def _on_no_ipc(self, reason: str) -> None:
        """A child could not use the weights that are there."""
        self.refuse_ipc(reason)

    def fail_holding(self, reason: str) -> None:
        self._fail(reason)

    def _end_owners(self) -> None:
        owners, self._owners = self._owners, None
        if owners is not None:
            owners.end()

    # -- the zygote ------------------------------------------------------------------------------------------

    def _start_zygote(self) -> None:
        assert self.plan is not None
        self._loading = True
        self.zygote = zygote = ChildProcess(
            "work.zygote", {**make_environment(self.plan), **hide_gpus(self.plan)}, self._talkative
        )
        zygote.channel.post(self._specify())
        self._loop.watch(zygote.channel, self._on_zygote)
        self._loop.watch(zygote.errors, self._on_zygote_errors)
        self._loop.flush(zygote.channel)

    def _specify(self) -> Specification:
        inventory, arena = self.inventory, self._arena
        return replace(
            self._specification,
            plan=self.plan,
            remote=self.servers is not None,
            arena=arena.path if arena else None,
            manifest=inventory.manifest if inventory else None,
        )

    def _post_zygote(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        assert self.zygote is not None
        self.zygote.channel.post(message, fds)
        self._loop.flush(self.zygote.channel)

    def _on_zygote(self) -> None:
        zygote = self.zygote
        assert zygote is not None
        self._loop.flush(zygote.channel)
        try:
            for kind, *content in zygote.channel.poll():
                getattr(self, f"_on_{kind}")(*content)
                if self.zygote is not zygote:  # it is not needed any more
                    return
        except EOFError:
            self._lose_zygote()

    def _on_zygote_errors(self) -> None:
        assert self.zygote is not None
        self._loop.pass_on(self.zygote.errors, self.zygote.last_words, self._log)

    def _on_loaded(self, inventory: Inventory) -> None:
        """Now that the weights are known, so is how many workers fit. The first of them, if it has loaded the models
        itself, is there already."""
        self._opened = inventory
        self._go_on()

    def _go_on(self) -> None:
        """Everything is loaded, or part of it: what is in servers, and what is in the process to be forked from."""
        inventory, served = self._opened, self._served
        if inventory is None or (self.servers is not None and served is None):
            return
        self._opened = None
        if served is not None:
            inventory = replace(
                inventory,
                weights=served.weights,
                seconds=max(inventory.seconds, served.seconds),
                tf32=served.tf32,
                batches=self.servers.share_batches(served) if self.servers is not None else {},
                warnings=served.warnings,
            )
        if self.inventory is None or self.zygote is not None:
            self._loading = False
            self._take_inventory(inventory)
            self.refill()
        self._employer.note_loaded()

    def _take_inventory(self, inventory: Inventory) -> None:
        assert self.plan is not None
        first = self.inventory is None
        private = inventory.private if self.plan.request.private is None else None
        self.plan = replace(self.plan.learn(inventory.weights, private), refusal="")  # they are loaded: one does fit
        self.inventory = inventory
        if first:
            for text in (self.plan.fallback, self.plan.capped, *inventory.warnings):
                if text:
                    self._notice(text)
            self._governor.begin(self.plan, inventory.weights)
            self.size = self.plan.workers
        loaded = self.zygote or next(iter(self.workers.values()))
        memory = measure_memory(loaded.pid)
        if memory is not None:
            weights = 0 if self.servers is not None else inventory.weights
            self._governor.note_loaded(memory.pss, weights, forks=self.zygote is not None)

    def _on_unsafe(self, why: str) -> None:
        """The zygote must not fork. If nobody insisted on it, workers load by themselves."""
        assert self.plan is not None and self.zygote is not None
        self._end_zygote(self.zygote, _EXIT_SECONDS)
        self._end_servers()
        self._end_owners()
        self.inventory = None  # of a zygote before it, which could fork
        other = self.plan.learn(unsafe=why)
        if not other.refusal:
            self._notice(f"cannot fork: {why}; the workers are spawned instead")
        self.start(other)

    def _on_failed(self, text: str, trace: str) -> None:
        if trace:
            self._log(trace)
        self._fail(text)

    def _lose_zygote(self) -> None:
        """Its workers die with it. Their tasks are not to blame and lose no attempt."""
        assert self.zygote is not None
        while self._loop.pass_on(self.zygote.errors, self.zygote.last_words, self._log):
            pass
        words = self.zygote.last_words.decode(errors="replace").strip().rpartition("\n")[2]
        status = self._end_zygote(self.zygote, _EXIT_SECONDS)
        self._opened = None
        self._end_owners()
        starved = status == -signal.SIGKILL and self._governor.was_killed_for_memory()
        reason = "was ended by the kernel: out of memory" if starved else describe_exit(status)
        for worker in list(self.workers.values()):
            with contextlib.suppress(EOFError):
                self._hear(worker)  # it may have finished something before it died
            self._forget(worker)
            del self.workers[worker.number]
            if worker.task:
                self._employer.requeue(worker.task)
        if self.is_closed:
            return
        self._zygotes_lost += 1
        if self._zygotes_lost >= _BARREN_STARTS:
            text = f"the process that loads the models {reason} {self._zygotes_lost} times in a row"
            self._fail(f"{text}: {words}" if words else text)
            return
        again = "loading the models again" if self.servers is None else "started again"
        self._notice(f"the zygote {reason}; {again}")
        self._start_zygote()

    def _end_zygote(self, zygote: ChildProcess, patience: float) -> int:
        """Its exit status. patience: seconds for it to end by itself."""
        self._loop.ignore(zygote.channel)
        self._loop.ignore(zygote.errors)
        self.zygote = None
        return zygote.end(patience)

    # -- the workers -----------------------------------------------------------------------------------------

    def _list_free_slots(self) -> list[int]:
        assert self.plan is not None
        taken = {worker.slot for worker in self.workers.values()}
        return [slot for slot in range(self.plan.workers) if slot not in taken]

    def _add(self, slot: int) -> None:
        assert self.plan is not None
        if self.plan.strategy.forks:
            self._fork(slot)
        else:
            self._spawn(slot)

    def _fork(self, slot: int) -> None:
        assert self.plan is not None
        channel, there = Channel.pair()
        errors, writing = Output.pipe()
        worker = Worker(slot, next(self._numbers), channel, errors, time.monotonic())
        self._adopt(worker)
        order = ("fork", worker.number, self.plan.threads, self._find_device(slot))
        self._post_zygote(order, (there.detach(), writing))
        if self.servers is not None:
            self.servers.connect(worker)

    def _spawn(self, slot: int) -> None:
        """Starts a process that will load, once it is told what: see _tell_next."""
        assert self.plan is not None
        environment = make_environment(self.plan)
        if self.plan.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.plan.devices[self._find_device(slot)]
        child = ChildProcess("work.spawned", environment, self._talkative)
        number, now = next(self._numbers), time.monotonic()
        self._adopt(Worker(slot, number, child.channel, child.errors, now, child, told=False, pid=child.pid))

    def _adopt(self, worker: Worker) -> None:
        self.workers[worker.number] = worker
        self._loop.watch(worker.channel, partial(self._on_worker, worker))
        hear = partial(self._loop.pass_on, worker.errors, worker.last_words, self._log)
        self._loop.watch(worker.errors, hear)

    def _tell_next(self) -> None:
        """One worker loads at a time: memory for one copy more than is shared is all that is needed."""
        waiting = [worker for worker in self.workers.values() if not worker.told and not worker.ended]
        if waiting and not any(w.told and w.ready is None for w in self.workers.values()):
            waiting[0].told = True
            waiting[0].channel.post(self._specify())
            self._loop.flush(waiting[0].channel)

    def _bury(self) -> None:
        """Sees which of the processes that were spawned have ended; for the others, the zygote does."""
        for worker in list(self.workers.values()):
            if worker.child is not None and (worker.ended or worker.sentence):
                status = worker.child.poll()
                if status is not None:
                    self._on_exited(worker.number, status)

    def _on_forked(self, number: int, pid: int) -> None:
        self.workers[number].pid = pid

    def _on_exited(self, number: int, status: int) -> None:
        worker = self.workers[number]
        with contextlib.suppress(EOFError):
            self._hear(worker)  # it may have finished something before it died
        while self._loop.pass_on(worker.errors, worker.last_words, self._log):
            pass
        self._forget(worker)
        del self.workers[number]
        if not worker.dismissed:
            self._mourn(worker, status)
        self.refill()

    def _mourn(self, worker: Worker, status: int) -> None:
        """One died that was needed."""
        self.deaths += 1
        killed = status == -signal.SIGKILL and not worker.sentence
        starved = worker.starved or (killed and self._governor.was_killed_for_memory())
        words = find_last_words(worker.last_words.decode(errors="replace"))
        ended = "was ended by the kernel: out of memory" if starved else words or describe_exit(status)
        reason = f"{worker.name} (pid {worker.pid}): {worker.sentence or ended}"
        if worker.ready is None:
            self._lose_unready(reason)
        elif worker.task:
            self._employer.lose(worker, reason, starved)
        else:
            self._notice(f"{reason}; replaced")

    def _lose_unready(self, reason: str) -> None:
        """A worker died before it could do anything. If that goes on, there are as many as there are."""
        self._unready += 1
        if self._unready < _BARREN_STARTS:
            return
        self._unready, self.size = 0, len(self.workers)
        if self.size:
            self._notice(f"workers die before they are ready, the last one {reason}; going on with {self.size}")
        else:
            self._fail(f"workers die before they are ready: {reason}")

    def _on_worker(self, worker: Worker) -> None:
        self._loop.flush(worker.channel)
        try:
            self._hear(worker)
        except EOFError:
            worker.ended = True
            self._loop.ignore(worker.channel)
            self.kill(worker, "")  # most often it is dead already, and the zygote will say of what

    def _hear(self, worker: Worker) -> None:
        for kind, *content in worker.channel.poll():
            worker.seen = time.monotonic()
            if kind in ("loaded", "failed"):
                getattr(self, f"_on_{kind}")(*content)
            elif kind == "spoiled":
                self.lose_weights(content[0])
            elif kind == "ready":
                worker.ready = worker.seen - worker.born
                self._unready = 0
            else:
                self._employer.hear(worker, kind, content)

    def _forget(self, worker: Worker) -> None:
        self._loop.ignore(worker.channel)
        self._loop.ignore(worker.errors)
        worker.channel.close()
        worker.errors.close()
        if self.servers is not None:
            self.servers.forget(worker)
