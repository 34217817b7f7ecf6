"""The processes in which a target of `prefork check --device` is examined: one computes on the GPU by itself, the other
never does, and forks children that do."""

from __future__ import annotations

import os
import pickle
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from prefork.check.device_check import TOGETHER, WORKERS
from prefork.check.device_children import (
    Infer,
    ask,
    infer_alone,
    infer_on_cpu,
    infer_on_signal,
    infer_there,
    initialise,
    live,
    write_to,
)
from prefork.check.difference import (
    Difference,
    Numbers,
    Unlike,
    find_dtype,
    find_tolerance,
    flatten,
    measure_difference,
)
from prefork.check.messages import ChildRefused, ChildResult, DeviceOrder, DeviceResult, ExaminationEnds
from prefork.check.steps import LOAD_SECONDS, Finding
from prefork.check.stepwise import SLACK_SECONDS, StepResult, Stepwise, describe_death, find_inference, judge_hazards
from prefork.engines.batching import Batching
from prefork.platform_matrix.canary import Canary, Fate, Outcome
from prefork.platform_matrix.devices import initialised_drivers
from prefork.platform_matrix.hazards import find_hazards
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.channel import Channel
from prefork.wire.child import ChildProcess, open_channel
from prefork.wire.environment import make_environment
from prefork.wire.exports import Export
from prefork.wire.memory_file import MemoryFile
from prefork.wire.messages import (
    BatchFailed,
    BatchStarted,
    ConnectWorker,
    FromServer,
    IPCUnavailable,
    LoadFailed,
    ServerBroken,
    ServerOrder,
)
from prefork.wire.owner_messages import FromOwner, UploadWeights, WeightsExported
from prefork.work import loading
from prefork.work.comparison import NotComparable, encode
from prefork.work.loaded import Loaded

# What torch says in a child of a process that has initialised CUDA, and what CUDA says where torch does not ask first.
_EXPECTED = ("re-initialize CUDA in forked subprocess", "initialization error", "CUDA_ERROR_NOT_INITIALIZED")
_END_SECONDS = 5.0  # for a server or an owner to end by itself
_REPLY_SECONDS = 0.5  # for messages that are under way to arrive


class NotThere(Exception):
    """A step that this machine, or this target, has no use for. Says why."""


def main() -> None:
    """Entry point of both processes."""
    channel = open_channel(forks=True)
    order, _ = channel.receive()
    (Computing if order.expected is None else Forking)(channel, order).run()
    os._exit(0)  # whatever the target has left running


class DeviceStepwise(Stepwise):
    def __init__(self, channel: Channel, order: DeviceOrder) -> None:
        super().__init__(channel)
        self._order = order

    def _load(self) -> StepResult | None:
        """None if there is something to go on with."""
        self._loaded = loading.load(self._order.specification)
        infer = find_inference(self._order.target, self._loaded)
        if infer is None:
            return Finding.UNKNOWN, "the engine has no example to infer on", ()
        self._infer: Infer = infer
        return None

    def _try(self, step: Callable[[], StepResult]) -> StepResult:
        try:
            return super()._try(step)
        finally:
            self._tidy()

    def _tidy(self) -> None:
        """After each step."""


class Computing(DeviceStepwise):
    """Loads and infers on the device, as any process does that computes there, and shows what a fork then costs."""

    who = "the process that computes there"

    def run(self) -> None:
        loads = self.take("load", partial(self._load_with, self._compute), LOAD_SECONDS, alone=True)
        if loads is Finding.SAFE:
            self.take("naive", self._fork, self._order.deadline + SLACK_SECONDS)
        self._channel.send(ExaminationEnds())

    def _compute(self) -> StepResult:
        if (nothing := self._load()) is not None:
            return nothing
        try:
            result = flatten(self._infer(self._loaded))
        except NotComparable as error:
            return Finding.UNKNOWN, str(error), ()
        text = f"{self._loaded.count_weights() / 1e6:.0f} MB of weights"
        if self._loaded.device == "cuda":
            tf32 = "with" if loading.uses_tf32("cuda") else "without"
            text = f"{text} on {torch.cuda.get_device_name(0)}, {tf32} TF32"
        self._channel.send(DeviceResult(pickle.dumps(result)))
        return Finding.SAFE, text, ()

    def _fork(self) -> StepResult:
        if self._loaded.device == "cpu":
            return Finding.SKIPPED, "CUDA has not been initialised", ()
        return judge_naive(
            Canary(partial(_infer_again, os.getpid(), self._loaded, self._infer)).wait(self._order.deadline)
        )


def _infer_again(parent: int, loaded: Loaded, infer: Infer) -> bytes:
    SYSTEM.begin_child(parent)
    SYSTEM.restore_signals()
    return encode(infer(loaded))


def judge_naive(outcome: Outcome) -> StepResult:
    """The fork must fail. If it does not, nothing is unsafe, but what is assumed of CUDA is wrong."""
    if outcome.lived:
        return Finding.UNKNOWN, "it computed there, which should be impossible", ()
    if outcome.fate is Fate.RAISED and not any(text in outcome.words for text in _EXPECTED):
        return Finding.UNKNOWN, f"{describe_death(outcome)}, and the error does not mention CUDA's state", outcome.where
    return Finding.SAFE, describe_death(outcome), ()


class Forking(DeviceStepwise):
    """Has the weights on the CPU and no CUDA, and forks children that compute on the device."""

    def __init__(self, channel: Channel, order: DeviceOrder) -> None:
        super().__init__(channel, order)
        self._file = MemoryFile()
        self._order = replace(order, specification=replace(order.specification, arena=self._file.path))
        self._dtype = "float32"
        self._expected: Numbers = pickle.loads(order.expected or b"")
        self._owner: ChildProcess | None = None
        self._export: Export | None = None
        self._server: ChildProcess | None = None

    def run(self) -> None:
        patience = self._order.deadline + SLACK_SECONDS
        try:
            clean = self.take("clean", self._stay_clean, LOAD_SECONDS, alone=True)
            if clean is not Finding.SAFE:
                return
            self.take("close", self._compute_here, patience)
            if self.take("child", self._fork_one, patience) is not Finding.SAFE:
                return
            if self.take("ipc", self._share, LOAD_SECONDS + patience) in (Finding.SAFE, Finding.SKIPPED):
                self.take("written", self._write_over, patience)
            self._end_owner()
            self.take("server", self._serve, LOAD_SECONDS + patience)
        finally:
            self._end_owner()
            self._channel.send(ExaminationEnds())

    def _try(self, step: Callable[[], StepResult]) -> StepResult:
        def do() -> StepResult:
            try:
                return step()
            except NotThere as error:
                return Finding.SKIPPED, str(error), ()
            except _ChildFailed as error:
                return Finding.UNSAFE, str(error), error.details
            except Unlike as error:
                return Finding.UNKNOWN, f"it cannot be compared: {error}", ()

        return super()._try(do)

    def _tidy(self) -> None:
        if self._server is not None:
            self._server.end(_END_SECONDS)
            self._server = None

    def _end_owner(self) -> None:
        if self._owner is not None:
            self._owner.end(_END_SECONDS)
            self._owner = None

    def _stay_clean(self) -> StepResult:
        found = self._load_with(self._look)
        if found[0] is Finding.SAFE and self._order.device:
            self._wait(self._fork(partial(initialise, self._order.device)))
        return found

    def _look(self) -> StepResult:
        if (nothing := self._load()) is not None:
            return nothing
        if "cuda" in initialised_drivers():
            return Finding.UNSAFE, "CUDA has been initialised in it, although all GPUs were hidden", ()
        return judge_hazards(find_hazards())

    def _compute_here(self) -> StepResult:
        """On the CPU, in a child: libraries that a model calls ask CUDA things, and keep the answers."""
        self._dtype = find_dtype(self._loaded.models)
        try:
            here = self._wait(self._fork(partial(infer_on_cpu, self._infer)))
        except _ChildFailed as error:
            return Finding.UNKNOWN, f"the CPU cannot infer: {error}", error.details
        return self._judge(measure_difference(self._expected, here))

    def _judge(self, difference: Difference, text: str = "") -> StepResult:
        tolerance = find_tolerance(self._dtype)
        found = f"{text}{'; ' * bool(text)}{difference}; for {self._dtype}, {tolerance:.1e} is allowed"
        return (Finding.SAFE if difference.relative <= tolerance else Finding.UNSAFE), found, ()

    # -- children ----------------------------------------------------------------------------------------------------

    def _fork(self, action: Callable[[Loaded], Any], loaded: Loaded | None = None) -> Canary:
        return Canary(partial(live, os.getpid(), loaded or self._loaded, self._order.threads, action))

    def _wait(self, canary: Canary) -> Any:
        """What its action has returned. Raises _ChildFailed, NotThere."""
        outcome = canary.wait(self._order.deadline)
        if not outcome.lived:
            raise _ChildFailed(describe_death(outcome), [f"at {frame}" for frame in outcome.where])
        match pickle.loads(outcome.result or b""):
            case ChildRefused(reason):
                raise NotThere(reason)
            case ChildResult(content):
                return content

    def _fork_one(self) -> StepResult:
        device = self._order.device
        there = self._wait(self._fork(partial(infer_alone, self._infer, device)))[1]
        return self._judge(measure_difference(there, self._expected))

    # -- one copy of the weights -----------------------------------------------------------------------------------

    def _share(self) -> StepResult:
        if self._order.no_ipc:
            raise NotThere(self._order.no_ipc)
        loaded, seconds = self._attachable()
        canaries = [self._fork(partial(infer_there, self._infer), loaded) for _ in range(WORKERS)]
        results = [self._wait(canary) for canary in canaries]
        if len({digest for digest, _ in results}) > 1:
            return Finding.UNSAFE, "the children's results differ from one another", ()
        assert self._export is not None
        text = f"{self._export.size / 1e6:.0f} MB went to {self._export.device} in {seconds:.2f} s"
        return self._judge(measure_difference(results[0][1], self._expected), text)

    def _attachable(self) -> tuple[Loaded, float]:
        """What children attach to once they are forked, and the seconds it took. Raises NotThere."""
        arena = self._loaded.arena
        assert arena is not None
        visible = {"CUDA_VISIBLE_DEVICES": self._order.device} if self._order.device else {}
        self._owner = ChildProcess("work.owner", visible)
        self._owner.channel.post(UploadWeights(self._file.path, arena.size, self._order.kind))
        answer: FromOwner = self._owner.receive(LOAD_SECONDS)
        match answer:
            case IPCUnavailable(reason):
                raise NotThere(reason)
            case LoadFailed(reason):
                raise _ChildFailed(f"the owner of the weights: {reason}")
            case WeightsExported(export, seconds):
                self._export = export
                return replace(self._loaded, exports=(export,), devices=(self._order.device,)), seconds

    def _write_over(self) -> StepResult:
        """A child that has mapped the weights computes with them after another one has written to them."""
        if self._export is None:
            raise NotThere("no weights are shared between processes here")
        loaded = replace(self._loaded, exports=(self._export,), devices=(self._order.device,))
        ready, ready_writer = os.pipe()
        start_reader, start = os.pipe()
        reader = self._fork(partial(infer_on_signal, self._infer, ready_writer, start_reader), loaded)
        os.close(ready_writer)
        os.close(start_reader)
        try:
            select.select([ready], [], [], self._order.deadline)  # at its end, too, if the child dies
            self._wait(self._fork(write_to, loaded if self._order.kind == "cuda" else self._with(self._export)))
            with suppress(BrokenPipeError):
                os.write(start, b"!")
            noticed = self._wait(reader)
        finally:
            os.close(ready)
            os.close(start)
        if noticed is None:
            return Finding.UNSAFE, "a result was kept although another process had written to the weights", ()
        return Finding.SAFE, "the result was discarded", (noticed,)

    def _with(self, export: Export) -> Loaded:
        """What a child needs that only writes; the host's memory cannot be written to by those that map it."""
        return replace(self._loaded, devices=(os.fsdecode(export.handle),))

    # -- one process that has the model ----------------------------------------------------------------------------

    def _serve(self) -> StepResult:
        if self._order.no_server:
            raise NotThere(self._order.no_server)
        engine = self._order.target.engine
        assert engine is not None and self._order.served is not None
        self._server = server = self._start_server()
        canaries = []
        for number in range(WORKERS):
            here, there = socket.socketpair()
            server.channel.post(ConnectWorker(number), [there.detach()])
            server.channel.flush()
            canaries.append(self._fork(partial(ask, engine, here.fileno())))
            here.close()
        try:
            answers = [self._wait(canary) for canary in canaries]
        except _ChildFailed as error:
            failures = _list_failures(_collect_messages(server))
            raise _ChildFailed(f"{error}{': the server: ' + failures[0] if failures else ''}", error.details) from error
        sizes = [len(one.requests) for one in _collect_messages(server) if isinstance(one, BatchStarted)]
        single = answers[0][0]
        found = [measure_difference(one, single) for answer in answers for one in answer[1:]]
        found.append(measure_difference(single, self._expected))
        text = f"{sum(sizes)} segments in batches of {min(sizes)} to {max(sizes)}"
        if max(sizes) == 1:
            return Finding.UNKNOWN, f"{text}: no segments shared a batch", ()
        return self._judge(max(found, key=lambda difference: difference.relative), text)

    def _start_server(self) -> ChildProcess:
        assert self._order.served is not None
        plan = self._order.served.plan
        assert plan is not None
        environment = make_environment(plan)
        if self._order.device:
            environment["CUDA_VISIBLE_DEVICES"] = self._order.device
        server = ChildProcess("work.server", environment)
        served = replace(self._order.served, batching=Batching(batch_size=TOGETHER))
        server.channel.post(ServerOrder(served, self._order.threads))
        try:
            answer: FromServer = server.receive(LOAD_SECONDS)
        except (EOFError, TimeoutError) as error:
            server.kill()
            last_line = server.stderr_tail.decode(errors="replace").strip().rpartition("\n")[2]
            raise _ChildFailed(f"the server did not start: {last_line}") from error
        if isinstance(answer, LoadFailed):
            server.kill()
            raise _ChildFailed(f"the server cannot load: {answer.reason}")
        return server


class _ChildFailed(Exception):
    """A child, or another process, that did not do what it was to do. Says how, and where."""

    def __init__(self, text: str, details: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.details = details


def _collect_messages(server: ChildProcess) -> list[FromServer]:
    """All that it has sent."""
    found: list[FromServer] = []
    with suppress(EOFError, TimeoutError):
        while True:
            found.append(server.receive(_REPLY_SECONDS))
    return found


def _list_failures(messages: Sequence[FromServer]) -> list[str]:
    """Of batches, and of the server itself."""
    failed = [message.text for message in messages if isinstance(message, BatchFailed)]
    return failed + [message.reason for message in messages if isinstance(message, ServerBroken)]
