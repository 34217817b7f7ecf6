"""The process in which a target of `prefork check` is examined: it loads as a zygote does, then forks for real."""

from __future__ import annotations

import ctypes
import math
import os
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefork.check.messages import ExaminationEnds, ForkOrder, StepBegins, StepEnds
from prefork.check.steps import LOAD_SECONDS, PARALLEL, Finding, Step, blame_ourselves
from prefork.check.targets import Target, one_process
from prefork.platform_matrix.canary import Canary, Fate, Outcome
from prefork.platform_matrix.hazards import Hazard, Severity, find_hazards
from prefork.wire import process
from prefork.wire.channel import Channel
from prefork.wire.child import open_channel
from prefork.wire.endings import find_fatal_line
from prefork.wire.exceptions import describe_error
from prefork.work import loading
from prefork.work.loaded import Loaded

SLACK_SECONDS = 15.0  # what a step may take beyond its canaries' deadline
_WRITER_SECONDS = 0.2  # how long the witnesses of a death wait for it
_WITNESSES = 3
_MOST_FRAMES = 12

StepResult = tuple[Finding, str, Sequence[str]]  # what comes of a step, in words, and details


def main() -> None:
    """Entry point of the examining process."""
    channel = open_channel()
    order, _ = channel.receive()
    Examination(channel, order).run()
    os._exit(0)  # whatever the target has left running


class ParentFailed(Exception):
    """Inference fails in the process that forks: nothing can be said of its children. Says how, and where."""

    def __init__(self, text: str, details: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.text = text
        self.details = details


class Stepwise:
    """Takes one step after the other, and says so over a channel."""

    who = "the process that forks itself"

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._name = "load"  # of the current step

    def take(self, name: str, act: Callable[[], StepResult], patience: float, alone: bool = False) -> Finding:
        """alone, patience: as StepBegins has them."""
        self._name, started = name, time.monotonic()
        self._begin(patience, alone)
        finding, text, details = self._try(act)
        step = Step(name, finding, text, time.monotonic() - started, tuple(details))
        self._channel.send(StepEnds(step))
        return finding

    def _begin(self, patience: float, alone: bool = False) -> None:
        self._channel.send(StepBegins(self._name, patience, alone, self.who))

    def _try(self, step: Callable[[], StepResult]) -> StepResult:
        try:
            return step()
        except ParentFailed as error:
            return Finding.UNKNOWN, error.text, error.details
        except Exception as error:  # noqa: BLE001  what goes wrong here says nothing about the target
            return (*blame_ourselves(error), ())

    def _load_with(self, load: Callable[[], StepResult]) -> StepResult:
        """What the user's code does while it loads is what came of it."""
        try:
            with one_process():
                return load()
        except KeyboardInterrupt:
            raise
        except Exception as error:  # noqa: BLE001  whatever goes wrong while loading is what came of it
            text, trace = loading.explain(error)
            return Finding.UNKNOWN, text, trace.splitlines()[-4:-1]
        except BaseException as error:  # noqa: BLE001  sys.exit, too
            return Finding.UNKNOWN, describe_error(error, "load"), traceback.format_exc().splitlines()[-4:-1]


class Examination(Stepwise):
    """The steps, in order; ends at the first that shows that no more should be forked."""

    def __init__(self, channel: Channel, order: ForkOrder) -> None:
        super().__init__(channel)
        self._order = order
        self._hazards: list[Hazard] = []
        self._expected = b""

    def run(self) -> None:
        steps: dict[str, Callable[[], StepResult]] = {
            "load": partial(self._load_with, self._load),
            "hazards": self._look_for_hazards,
            "canary": self._fork_one,
            "same": self._compare,
            "again": self._fork_again,
            "threads": self._use_threads,
            "parallel": self._fork_many,
            "write": self._write,
            "kill": self._kill,
        }
        for name, step in steps.items():
            alone = name == "load"
            finding = self.take(name, step, LOAD_SECONDS if alone else self._limit(name) + SLACK_SECONDS, alone)
            if finding is not Finding.SAFE and name in ("load", "hazards", "canary", "same", "again"):
                break
        self._channel.send(ExaminationEnds())

    def _limit(self, name: str) -> float:
        """Seconds that a step's canaries may take; those that run at once have to share the cores."""
        rounds = math.ceil(PARALLEL / (os.cpu_count() or 1)) if name == "parallel" else 1
        return self._order.deadline * max(1, rounds)

    def _load(self) -> StepResult:
        self._loaded: Loaded = loading.load(self._order.specification)
        infer = find_inference(self._order.target, self._loaded)
        if infer is None:
            return Finding.UNKNOWN, "the engine has no example to infer on", ()
        self._infer = partial(infer, self._loaded)
        return Finding.SAFE, f"{self._loaded.count_weights() / 1e6:.0f} MB of weights", ()

    def _look_for_hazards(self) -> StepResult:
        self._hazards = find_hazards()
        return judge_hazards(self._hazards)

    def _fork_one(self) -> StepResult:
        outcome = self._fork().wait(self._order.deadline)
        if outcome.lived:
            self._expected = outcome.result or b""
            return Finding.SAFE, f"it took {outcome.seconds * 1000:.0f} ms", ()
        return self._blame(outcome)

    def _compare(self) -> StepResult:
        result = self._infer_here()
        return (Finding.SAFE, "", ()) if result == self._expected else self._compare_with_parent(result)

    def _compare_with_parent(self, before: bytes) -> StepResult:
        """A child has another result. Does the parent, too, get another than it had before?"""
        if self._infer_here() != before:
            return Finding.UNKNOWN, "the parent's own result changes each time; seed all random generators", ()
        return Finding.UNSAFE, "the child's result differs from the parent's", ()

    def _fork_again(self) -> StepResult:
        return self._judge([self._fork().wait(self._order.deadline)])

    def _use_threads(self) -> StepResult:
        """Not bit for bit: how a sum is split over threads shows in its last bits."""
        outcome = self._fork(self._order.threads).wait(self._order.deadline)
        return self._judge([outcome], exactly=False)

    def _fork_many(self) -> StepResult:
        canaries = [self._fork() for _ in range(PARALLEL)]
        return self._judge([canary.wait(self._limit("parallel")) for canary in canaries])

    def _write(self) -> StepResult:
        arena = self._loaded.arena
        assert arena is not None
        before = arena.digest()
        witnesses = [self._fork(wait=_WRITER_SECONDS) for _ in range(_WITNESSES)]
        writer = self._fork(act=lambda: ctypes.memset(arena.address, 255, 1)).wait(self._order.deadline)
        finding, text, details = self._judge([witness.wait(self._order.deadline) for witness in witnesses])
        if finding is not Finding.SAFE:
            return finding, f"after another child had written to a weight: {text}", details
        if writer.fate is not Fate.DIED or arena.digest() != before:
            return Finding.UNSAFE, "a child could write to the shared weights", ()
        return Finding.SAFE, f"it {writer.reason}", ()

    def _kill(self) -> StepResult:
        canaries = [self._fork(wait=_WRITER_SECONDS) for _ in range(_WITNESSES)]
        canaries[0].kill()
        canaries[0].wait(self._order.deadline)
        finding, text, details = self._judge([canary.wait(self._order.deadline) for canary in canaries[1:]])
        return finding, f"after another child was killed: {text}" if text else "", details

    def _fork(self, threads: int = 1, wait: float = 0.0, act: Callable[[], Any] = lambda: None) -> Canary:
        return Canary(partial(_live, self._loaded, self._infer, threads, wait, act))

    def _judge(self, outcomes: Sequence[Outcome], exactly: bool = True) -> StepResult:
        for outcome in outcomes:
            if not outcome.lived:
                return self._blame(outcome)
            if exactly and outcome.result != self._expected:
                return self._compare_with_parent(self._expected)
        return Finding.SAFE, "", ()

    def _blame(self, outcome: Outcome) -> StepResult:
        """What a canary died of, and what may be behind it."""
        if outcome.fate is Fate.RAISED:
            self._infer_here()  # if the parent fails, too, forking is not to blame
        text = describe_death(outcome)
        details = [f"at {frame}" for frame in _cut(outcome.where)]
        if outcome.fate is Fate.HUNG:
            suspects = [h.what for h in self._hazards if h.severity is not Severity.HARMLESS]
            details += [f"in the parent, and in no child: {what}" for what in suspects]
        return Finding.UNSAFE, text, details

    def _infer_here(self) -> bytes:
        """What the parent itself computes, encoded. Raises ParentFailed."""
        from prefork.work.comparison import NotComparable, encode

        self._begin(self._order.deadline, alone=True)
        try:
            with one_process():
                result = encode(self._infer())
        except NotComparable as error:
            raise ParentFailed(str(error)) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = reversed(traceback.extract_tb(error.__traceback__)[1:])
            where = [f"at {frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in frames]
            text = f"the parent itself cannot infer: {describe_error(error, 'infer')}"
            raise ParentFailed(text, where[:_MOST_FRAMES]) from error
        return result


def describe_death(outcome: Outcome) -> str:
    """What a child died of, a line."""
    reason = find_fatal_line(outcome.words)
    return f"the child {outcome.reason}{': ' + reason if reason else ''}"


def find_inference(target: Target, loaded: Loaded) -> Callable[[Loaded], Any] | None:
    """The user's function on the user's model, else the engine on its example; None if it has none."""
    if target.infer is not None:
        infer = target.infer.resolve()
        return lambda there: infer(there.models["load"])
    has_example = any(engine.example() is not None for engine in loaded.engines.values())
    return Loaded.try_examples if has_example else None


def judge_hazards(hazards: Sequence[Hazard]) -> StepResult:
    """What of this process a forked child may not survive."""
    unsafe = [hazard for hazard in hazards if hazard.severity is Severity.UNSAFE]
    if unsafe:
        details = [f"{hazard.severity}: {hazard.what}; {hazard.remedy}" for hazard in unsafe]
        return Finding.UNSAFE, "; ".join(hazard.what for hazard in unsafe), details
    suspects = sum(hazard.severity is Severity.SUSPECT for hazard in hazards)
    text = f"{suspects or 'nothing'} suspect" + " for the canary to try" * bool(suspects)
    return Finding.SAFE, text, [f"{hazard.severity}: {hazard.what}" for hazard in hazards]


def _cut(where: Sequence[str]) -> list[str]:
    """The frames of the code that is examined, without those of who called it."""
    own = [index for index, frame in enumerate(where) if frame.startswith(f"{_live.__name__} (")]
    return list(where[: own[0] if own else None])[:_MOST_FRAMES]


def _live(loaded: Loaded, infer: Callable[[], Any], threads: int, wait: float, act: Callable[[], Any]) -> bytes:
    """A child's life: as a worker's begins, then one inference."""
    from prefork.work.comparison import encode
    from prefork.work.worker import settle

    process.die_with_parent(os.getppid())
    process.restore_signals()
    settle(loaded, threads)
    time.sleep(wait)
    act()
    return encode(infer())
