"""The models of a pool: which processes load and hold them, and what takes their place. Pure: see `prefork.pool.state`.

Either a zygote has loaded them and forks the workers; or, beside a zygote without models, servers or owners of GPU
memory have them; or each worker loads them itself. What does not work here falls back to what the matrix says next.
"""

from __future__ import annotations

from dataclasses import replace

from prefork.engines.base import LoadError
from prefork.platform_matrix.matrix import Plan, Strategy
from prefork.pool.actions import (
    Announce,
    CloseArena,
    EndOwners,
    EndZygote,
    KillZygote,
    LogText,
    OpenArena,
    Outbox,
    StartZygote,
)
from prefork.pool.events import OwnerExited, ServerExited, ServerSent, ZygoteExited
from prefork.pool.failing_devices import FailingDevices
from prefork.pool.fork_crashes import ForkCrashes
from prefork.pool.owners import Owners
from prefork.pool.policy import Policy
from prefork.pool.reloading import Reloading
from prefork.pool.servers import Servers
from prefork.pool.tasks import HangLimit, Task
from prefork.pool.workers import MOST_FAILED_STARTS, Fail, Worker, Workers
from prefork.wire.endings import describe_end
from prefork.wire.messages import (
    ForkUnsafe,
    FromZygote,
    IPCUnavailable,
    LoadFailed,
    Memory,
    ModelsLoaded,
    WeightsPacked,
    WorkerForked,
)
from prefork.wire.owner_messages import FromOwner, WeightsExported
from prefork.wire.specification import Inventory, Specification


class Models:
    """plan, inventory: as they are now. specification: what is loaded. loading_since: when the zygote began to, if it
    does. descriptors: files that a process may have open."""

    def __init__(
        self,
        outbox: Outbox,
        specification: Specification,
        plan: Plan,
        policy: Policy,
        hang_limit: HangLimit,
        fail: Fail,
        descriptors: int,
    ) -> None:
        self.inventory: Inventory | None = None
        self.servers: Servers | None = None
        self.workers = Workers(outbox, plan, self._specify, self._give_up)
        self.reloading = Reloading(outbox, self.workers, policy, self._adopt, self._load_anew)
        self._outbox = outbox
        self.specification = specification
        self._policy = policy
        self._hang_limit = hang_limit
        self._fail_all = fail
        self._descriptors = descriptors
        self._has_zygote = False
        self.loading_since: float | None = None  # the zygote
        self._is_restarting = False  # we have killed the zygote
        self._loaded: Inventory | None = None  # of the process to be forked from, until that is made use of
        self._zygotes_lost = 0  # in a row, without anything done
        self._owners = Owners(outbox, self.workers)
        self.devices = FailingDevices(outbox, self.workers, self._give_up, self._kill_zygote)
        self._deaths = 0  # of servers that are no more used
        self._crashes = ForkCrashes()

    @property
    def plan(self) -> Plan:
        return self.workers.plan

    @property
    def deaths(self) -> int:
        """Of workers and servers that were needed."""
        servers = self.servers
        return self.workers.deaths + self._deaths + (servers.deaths if servers is not None else 0)

    def _give_up(self, reason: str, error: BaseException | None = None) -> None:
        """Nothing can be loaded, for this reason."""
        if not self.reloading.take_failure(reason):
            self._fail_all(reason, error)

    def start(self, plan: Plan) -> None:
        """Has the models loaded as the plan says: by a zygote, or by the first of the workers itself."""
        self.workers.is_paused = False
        self.workers.plan = plan = self._policy.recall(plan)
        if plan.refusal:
            self._give_up(plan.refusal)
        elif plan.strategy.forks:
            if plan.strategy is Strategy.SERVER and self.servers is None:
                self._start_servers()
            if plan.strategy is Strategy.IPC:
                self._outbox.do(OpenArena())
            self._start_zygote()
        else:
            self.workers.can_start = False
            if plan.shared:
                self._outbox.do(OpenArena())
            self.workers.start(0)

    def tick(self) -> None:
        """Nobody is waited for without end."""
        if self._is_changing and not (self._has_zygote or self.workers.all):
            self._change_plan()
        seconds = self.find_loading_limit()
        self.workers.tick(seconds, self._hang_limit.base)
        self.reloading.tick(seconds)
        self.reloading.kill_late(self._hang_limit.base)
        if self.servers is not None:
            self.servers.kill_hung(seconds)
        if self.loading_since is not None and self._outbox.now - self.loading_since > seconds:
            self._give_up(
                f"the zygote has not loaded the models within {seconds:.0f} s; a longer hang limit allows it more"
            )
        elif (
            self._has_zygote
            and not self.devices.give_up_unended(self._hang_limit.base)
            and self.workers.is_zygote_late(self._hang_limit.base, self.workers.generation)
        ):
            self.start_over("the zygote, which forks the workers, did not answer")

    def find_loading_limit(self) -> float:
        return self._hang_limit.loading(self.plan.request.weights or 0)

    @property
    def is_starting(self) -> bool:
        """Whether something is about to come that workers are started from, or not to come, in limited time."""
        starting = self.servers is not None and any(server.inventory is None for server in self.servers.all)
        reloading = self._is_restarting or self.reloading.current is not None
        return starting or self.loading_since is not None or reloading or self._is_changing

    def note_success(self, worker: Worker) -> None:
        """Something was done."""
        self._zygotes_lost = 0
        self.devices.note_done(worker)

    def _specify(self) -> Specification:
        manifest = self.inventory.manifest if self.inventory else None
        return replace(self.specification, plan=self.plan, remote=self.servers is not None, manifest=manifest)

    # -- what is loaded ----------------------------------------------------------------------------------------

    def handle_loaded(self, inventory: Inventory) -> None:
        """By the zygote or by a spawned worker. Now that the weights are known, so is how many workers fit."""
        self.loading_since = None
        self._loaded = inventory
        self._go_on()

    def _go_on(self) -> None:
        """Everything is loaded, or part of it: what is in servers, and what is in the process to be forked from."""
        inventory, servers = self._loaded, self.servers
        if self._is_changing or inventory is None or (servers is not None and servers.inventory is None):
            return
        self._loaded = None
        if servers is not None and (served := servers.inventory) is not None:
            inventory = replace(
                inventory,
                weights=served.weights,
                seconds=max(inventory.seconds, served.seconds),
                tf32=served.tf32,
                batches=servers.share_batches(served),
                warnings=served.warnings,
            )
        if self.inventory is None or self._has_zygote:
            self._take_inventory(inventory)
            self.workers.can_start = True
            self.workers.refill()
        self.reloading.note_loaded()
        if self.specification.initializer is None or self.workers.were_ready:
            self._outbox.do(Announce())

    def _adopt(self, specification: Specification, inventory: Inventory) -> None:
        """Workers are forked from another zygote from here on, which has loaded this."""
        self.specification, self._loaded, self.loading_since = specification, None, None
        self._crashes = ForkCrashes()
        self._has_zygote, self._is_restarting, self.workers.can_start = True, False, True
        self._take_inventory(inventory)

    def _load_anew(self, specification: Specification) -> None:
        """There is no worker any more: other weights are loaded."""
        self.specification, self._loaded, self.inventory, self._is_restarting = specification, None, None, False
        self._end_zygote()
        self._outbox.do(EndOwners())
        self._outbox.do(CloseArena())
        self.start(self.plan)

    def handle_ready(self, worker: Worker) -> None:
        """A worker is; the first that an initializer lets be shows that it does."""
        if not self.workers.were_ready and self.specification.initializer is not None:
            self._outbox.do(Announce())
        self.workers.note_ready(worker)
        self._policy.note_memory(worker.name, worker.pid, Memory(0, 0))

    def _take_inventory(self, inventory: Inventory) -> None:
        first, plan = self.inventory is None, self.plan
        private = inventory.private if plan.request.private is None else None
        # They are loaded: one worker does fit.
        self.workers.plan = plan = replace(plan.learn(inventory.weights, private), refusal="")
        self.inventory = inventory
        if first:
            for text in (plan.fallback, plan.capped, *inventory.warnings):
                if text:
                    self._outbox.notify(text)
            self._policy.begin(plan, inventory.weights)
            self.workers.size = plan.workers
        if inventory.memory is not None:
            weights = 0 if self.servers is not None else inventory.weights
            self._policy.note_loaded(inventory.memory.pss, weights, self._has_zygote, plan.shared)

    def handle_failure(self, message: LoadFailed, place: int = 0) -> None:
        """place: of the device of whoever could not load."""
        if message.traceback:
            self._outbox.do(LogText(message.traceback))
        if message.device_failed and self.plan.devices:
            self.devices.give_up(place, message.reason)
        else:
            self._give_up(message.reason)

    @property
    def _is_changing(self) -> bool:
        """Whether a device was given up: all processes end, and then comes another plan."""
        return self.devices.next_plan is not None

    def _change_plan(self) -> None:
        plan = self.devices.take_next_plan()
        assert plan is not None
        self.inventory, self._loaded, self._is_restarting = None, None, False
        self._end_servers()
        self._outbox.do(EndOwners())
        self._outbox.do(CloseArena())
        self.start(plan)

    # -- the zygote --------------------------------------------------------------------------------------------

    def _start_zygote(self) -> None:
        self.workers.can_start = False
        self._has_zygote, self._is_restarting, self.loading_since = True, False, self._outbox.now
        self._outbox.do(StartZygote(self._specify(), self.plan, self.workers.generation))

    def _kill_zygote(self) -> None:
        if self._has_zygote:
            self._outbox.do(KillZygote(self.workers.generation))

    def _end_zygote(self) -> None:
        if self._has_zygote:
            self._outbox.do(EndZygote(self.workers.generation))
        self._has_zygote, self.loading_since = False, None

    def handle_zygote(self, message: FromZygote, generation: int) -> None:
        if generation != self.workers.generation and not isinstance(message, WorkerForked):
            self.reloading.handle_zygote(message, generation)
            return
        match message:
            case ModelsLoaded(inventory):
                self.handle_loaded(inventory)
            case LoadFailed():
                self.handle_failure(message)
            case ForkUnsafe(reason):
                self._spawn_instead(reason)
            case IPCUnavailable(reason):
                self._serve_instead(reason)
            case WeightsPacked(size):
                self._owners.start(size)
            case WorkerForked(number, pid):
                self.workers.all[number].pid = pid

    def handle_zygote_exit(self, event: ZygoteExited) -> None:
        """Its workers have died with it, and are not to blame."""
        if self.reloading.handle_zygote_exit(event):
            self.workers.refill()
            return
        self._has_zygote, self.loading_since, self._loaded = False, None, None
        self._outbox.do(EndOwners())
        if self.workers.is_closed or self._is_changing:
            return
        if self._crashes.unsafe:
            reason, self._crashes, self._is_restarting = self._crashes.unsafe, ForkCrashes(), False
            self._spawn_instead(reason)
            return
        if self._is_restarting:  # we have killed it, and have said why
            self._start_zygote()
            return
        reason = describe_end(event.status, event.out_of_memory)
        self._zygotes_lost += 1
        if self._zygotes_lost >= MOST_FAILED_STARTS:
            last = event.stderr_tail.strip().rpartition("\n")[2]
            text = f"the zygote, which loads the models, {reason} {self._zygotes_lost} times in a row"
            self._give_up(f"{text}: {last}" if last else text)
            return
        again = "loading the models again" if self.servers is None else "started again"
        self._outbox.notify(f"the zygote {reason}; {again}")
        self._start_zygote()

    def _spawn_instead(self, reason: str) -> None:
        """The zygote must not fork. If nobody insisted on it, workers load by themselves."""
        self.reloading.end(LoadError(f"the weights were not reloaded: {reason}"))
        self._end_zygote()
        self._end_servers()
        self._outbox.do(EndOwners())
        self.inventory = None  # of a zygote before it, which could fork
        plan = self.plan.learn(unsafe=reason)
        if not plan.refusal:
            self._outbox.notify(f"cannot fork: {reason}; the workers are spawned instead")
        self.start(plan)

    @property
    def may_stop_forking(self) -> bool:
        """Whether workers can be spawned, and nobody insists on forked ones."""
        plan = self.plan
        return plan.strategy is Strategy.FORK and plan.request.strategy is None and not plan.learn(unsafe="?").refusal

    def note_crash(self, task: Task, reason: str) -> bool:
        """A forked worker has crashed at a task. Whether all tasks start over in spawned ones."""
        if self.may_stop_forking and not self._is_restarting:
            self._crashes.note(task, reason)
            self._is_restarting = bool(self._crashes.unsafe)
            if self._is_restarting:
                self._kill_zygote()
        return bool(self._crashes.unsafe)

    # -- the servers -------------------------------------------------------------------------------------------

    def _start_servers(self) -> None:
        what = self._outbox, self.specification, self.plan, self.workers, self._policy
        limits = self._hang_limit, self._descriptors, self.devices.can_spare
        self.servers = self.workers.servers = Servers(*what, *limits)

    def _end_servers(self) -> None:
        servers, self.servers, self.workers.servers = self.servers, None, None
        if servers is not None:
            self._deaths += servers.deaths
            servers.end()

    def handle_server(self, event: ServerSent | ServerExited) -> None:
        """With it they may have become ready, or impossible."""
        servers = self.servers
        if servers is None or self._is_changing:
            return
        if isinstance(event, ServerExited):
            servers.handle_exit(event)
        else:
            servers.handle(event.place, event.message)
        failure, servers.failure = servers.failure, None
        if servers.dead is not None:
            self.devices.give_up(*servers.dead)
        elif failure is not None:
            self.handle_failure(failure)
        elif servers.inventory is not None:
            self._go_on()
            if self.inventory is not None:
                self.inventory = replace(self.inventory, batches=servers.share_batches(servers.inventory))

    # -- the owners of weights on GPUs -------------------------------------------------------------------------

    def handle_owner(self, place: int, message: FromOwner) -> None:
        match message:
            case WeightsExported(export):
                self._owners.take(place, export)
            case IPCUnavailable(reason):
                self._serve_instead(reason)
            case LoadFailed():
                self.handle_failure(message, place)

    def handle_owner_exit(self, event: OwnerExited) -> None:
        """It takes its memory with it."""
        self.start_over(f"{event.name} (pid {event.pid}) {describe_end(event.status, False)}")

    def start_over(self, reason: str) -> None:
        """The weights are gone, or no longer what they were: whoever reads them is ended, with the zygote that it was
        forked from; all is loaded anew."""
        if self._has_zygote and not (self.workers.is_closed or self._is_restarting):
            self._is_restarting = True
            self._outbox.notify(f"{reason}; the models are loaded again, and running tasks start over")
            self._kill_zygote()

    def _serve_instead(self, reason: str) -> None:
        """Memory cannot be shared between processes here."""
        self._end_zygote()
        self._outbox.do(EndOwners())
        self._outbox.do(CloseArena())  # it has the weights, which are loaded anew elsewhere
        self.inventory = None
        plan = self.plan.learn(no_ipc=reason)
        if not plan.refusal:
            text = f"CUDA IPC does not work here: {reason}; one process holds the models instead ({plan.strategy})"
            self._outbox.notify(text)
        self.start(plan)
