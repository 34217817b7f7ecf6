"""Other weights for a pool that runs. Pure: see `prefork.pool.state`.

Where workers are forked, another zygote loads them, beside the one that is in use. Once it has, all workers are forked
from it; those there are end with the calls that they run, and the old zygote after the last of them. Elsewhere calls
wait until those that run are done, and all is loaded anew; if that fails, the old weights are loaded again. If a call
does not end, all go on with the old weights: the others are kept waiting no longer than loading may take.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from prefork.engines.base import LoadError
from prefork.errors import Stopped
from prefork.platform_matrix.matrix import Strategy
from prefork.pool.actions import Complete, EndZygote, KillZygote, LogText, Outbox, StartZygote
from prefork.pool.events import ZygoteExited
from prefork.pool.policy import Policy
from prefork.pool.tasks import Task
from prefork.pool.workers import Workers
from prefork.wire.endings import describe_end
from prefork.wire.messages import ForkUnsafe, FromZygote, LoadFailed, ModelsLoaded
from prefork.wire.specification import Inventory, Specification


@dataclass(slots=True)
class Reload:
    """task: ends with it. generation: of the new weights; before: of the old ones. beside: the new are loaded beside
    those. began: else, whether all has ended that had the old ones."""

    task: Task
    old: Specification
    new: Specification
    before: int
    generation: int
    beside: bool
    since: float
    began: bool = False


class Reloading:
    """One reload at a time. count: of those that were done.

    adopt: called once another zygote has loaded what this says. load_anew: once nothing has the old weights any more.
    """

    def __init__(
        self,
        outbox: Outbox,
        workers: Workers,
        policy: Policy,
        adopt: Callable[[Specification, Inventory], None],
        load_anew: Callable[[Specification], None],
    ) -> None:
        self.current: Reload | None = None
        self.count = 0
        self._generations = itertools.count(1)  # none is used again: what was killed ends when it ends
        self._outbox = outbox
        self._workers = workers
        self._policy = policy
        self._adopt = adopt
        self._load_anew = load_anew
        self._old: set[int] = set()  # generations whose zygotes are there as long as they have workers

    def begin(self, load: bytes, task: Task, specification: Specification, inventory: Inventory | None) -> None:
        """load: the pickled function that loads the new weights. inventory: of those in use."""
        workers = self._workers
        refusal = ""
        if self.current is not None:
            refusal = "the weights are being reloaded already: wait for that to end"
        elif inventory is None or not workers.can_start:
            refusal = "the models are being loaded: reload the weights when they are"
        else:
            refusal = self._policy.explain_want(inventory.weights)
        if refusal or inventory is None:
            self._outbox.do(Complete(task, None, LoadError(refusal)))
            return
        new = replace(specification, load=load, expected=inventory.tensors)
        beside = workers.plan.strategy is Strategy.FORK
        generation = next(self._generations)
        self.current = Reload(task, specification, new, workers.generation, generation, beside, self._outbox.now)
        if beside:
            self._outbox.do(StartZygote(replace(new, plan=workers.plan), workers.plan, generation))
        else:
            workers.generation, workers.is_paused = generation, True

    def tick(self, limit: float) -> None:
        """limit: seconds that loading may take."""
        workers, reload = self._workers, self.current
        workers.retire_outdated()
        for generation in [g for g in self._old if all(w.generation != g for w in workers.all.values())]:
            self._old.discard(generation)
            self._outbox.do(EndZygote(generation))
        if reload is None:
            return
        if reload.beside and self._outbox.now - reload.since > limit:
            self._outbox.do(KillZygote(reload.generation))
            self._fail(f"they were not loaded within {limit:.0f} s; a longer hang limit allows it more")
        elif reload.beside or reload.began:
            return
        elif workers.all and self._outbox.now - reload.since > limit:
            self._go_back(reload, limit)
        elif not workers.all:
            reload.began, workers.is_paused = True, False
            if workers.plan.strategy.forks:  # its zygote has the number of the old weights
                self._outbox.do(EndZygote(reload.before))
            self._load_anew(reload.new)

    def handle_zygote(self, message: FromZygote, generation: int) -> None:
        """Of one that workers are not forked from."""
        reload = self.current
        if reload is None or not reload.beside or generation != reload.generation:
            return
        match message:
            case ModelsLoaded(inventory):
                self._old.add(self._workers.generation)
                self._workers.generation = generation
                self._adopt(reload.new, inventory)
                self._workers.retire_outdated()
                self._workers.refill()
                self._finish(None)
            case LoadFailed(reason, trace):
                if trace:
                    self._outbox.do(LogText(trace))
                self._outbox.do(EndZygote(generation))
                self._fail(reason)
            case ForkUnsafe(reason):
                self._outbox.do(EndZygote(generation))
                self._fail(f"with them, workers cannot be forked: {reason}")

    def handle_zygote_exit(self, event: ZygoteExited) -> bool:
        """Whether it was one that workers are not forked from any more, or not yet."""
        if event.generation == self._workers.generation:
            return False
        self._old.discard(event.generation)
        if self.current is not None and self.current.beside and event.generation == self.current.generation:
            self._fail(
                f"the zygote that loads them {describe_end(event.status, event.out_of_memory, event.stderr_tail)}"
            )
        return True

    def kill_late(self, limit: float) -> None:
        """Of the zygotes that go with their last worker, those that owe an answer."""
        for generation in self._old:
            if self._workers.is_zygote_late(limit, generation):
                self._outbox.do(KillZygote(generation))

    def note_loaded(self) -> None:
        """All was loaded anew."""
        if self.current is not None and self.current.began:
            self._finish(None)

    def take_failure(self, reason: str) -> bool:
        """Whether the new weights are to blame for it that nothing could be loaded; then the old ones are again."""
        reload = self.current
        if reload is None or not reload.began:
            return False
        self._fail(reason)
        for worker in self._workers.all.values():
            self._workers.retire(worker)
        self._load_anew(reload.old)
        return True

    def end(self, error: BaseException) -> None:
        """All processes end, for this reason, or to be started another way."""
        for generation in self._old:
            self._outbox.do(EndZygote(generation))
        self._old.clear()
        if self.current is not None:
            if self.current.beside:
                self._outbox.do(EndZygote(self.current.generation))
            self._finish(error if isinstance(error, LoadError | Stopped) else Stopped(str(error)))

    def _go_back(self, reload: Reload, limit: float) -> None:
        """To the old weights, which calls do not let go of."""
        workers = self._workers
        busy = ", ".join(f"{worker.name} at {worker.task.label}" for worker in workers.list_busy() if worker.task)
        workers.readopt(reload.before)
        self._fail(
            f"calls that have them had not ended after {limit:.0f} s ({busy or 'nor had their workers'}); end them "
            "(Runtime.cancel, with_options(timeout=)) and reload again, or allow more by a longer hang limit"
        )

    def _fail(self, reason: str) -> None:
        self._finish(LoadError(f"the new weights cannot be used, and the old ones are: {reason}"))

    def _finish(self, error: BaseException | None) -> None:
        reload, self.current = self.current, None
        assert reload is not None
        self.count += error is None
        self._outbox.do(Complete(reload.task, None if error else b"", error))
