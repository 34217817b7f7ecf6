"""The process in which a target of `prefork check` is examined: it loads as a zygote does, then forks for real."""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from platform_matrix.canary import Canary, Fate, Outcome
from platform_matrix.hazards import Hazard, Severity, find_hazards
from prefork import loading, process
from prefork.channel import Channel
from prefork.check import PARALLEL, Finding, Order, Step
from prefork.child import open_channel
from prefork.faults import find_last_words
from prefork.loading import Loaded

_WRITER_SECONDS = 0.2  # how long the witnesses of a death wait for it
_WITNESSES = 3
_MOST_FRAMES = 12


def main() -> None:
    """Entry point of the examining process."""
    channel = open_channel()
    order, _ = channel.receive()
    Examination(channel, order).run()
    os._exit(0)  # whatever the target has left running


class Examination:
    """The steps, in order; ends at the first that shows that no more should be forked."""

    def __init__(self, channel: Channel, order: Order) -> None:
        self._channel = channel
        self._order = order
        self._hazards: list[Hazard] = []
        self._expected = b""

    def run(self) -> None:
        steps: dict[str, Callable[[], tuple[Finding, str, Sequence[str]]]] = {
            "load": self._load,
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
            started = time.monotonic()
            self._channel.send(("begin", (name, self._limit(name))))
            finding, text, details = step()
            self._channel.send(("step", Step(name, finding, text, time.monotonic() - started, tuple(details))))
            if finding is not Finding.SAFE and name in ("load", "hazards", "canary", "same", "again"):
                return

    def _limit(self, name: str) -> float:
        """Seconds that a step's canaries may take; those that run at once have to share the cores."""
        rounds = math.ceil(PARALLEL / (os.cpu_count() or 1)) if name == "parallel" else 1
        return self._order.deadline * max(1, rounds)

    def _load(self) -> tuple[Finding, str, Sequence[str]]:
        try:
            self._loaded: Loaded = loading.load(self._order.specification)
            infer = self._order.target.infer
            self._infer = partial(infer.resolve(), self._loaded.models["load"]) if infer else self._loaded.try_examples
            if (
                infer is None
                and not self._loaded.models.keys() - self._loaded.engines.keys()
                and not self._has_example()
            ):
                return Finding.UNKNOWN, "the engine has no example to infer on", ()
        except Exception as error:  # noqa: BLE001  whatever goes wrong while loading is what came of it
            text, trace = loading.explain(error)
            return Finding.UNKNOWN, text, trace.splitlines()[-4:-1]
        return Finding.SAFE, f"{self._loaded.count_weights() / 1e6:.0f} MB of weights", ()

    def _has_example(self) -> bool:
        return any(engine.example() is not None for engine in self._loaded.engines.values())

    def _look_for_hazards(self) -> tuple[Finding, str, Sequence[str]]:
        self._hazards = find_hazards()
        unsafe = [hazard for hazard in self._hazards if hazard.severity is Severity.UNSAFE]
        details = [f"{hazard.severity}: {hazard.what}; {hazard.remedy}" for hazard in unsafe]
        if unsafe:
            return Finding.UNSAFE, "; ".join(hazard.what for hazard in unsafe), details
        details = [f"{hazard.severity}: {hazard.what}" for hazard in self._hazards]
        suspects = sum(hazard.severity is Severity.SUSPECT for hazard in self._hazards)
        return Finding.SAFE, f"{suspects or 'nothing'} suspect" + " for the canary to try" * bool(suspects), details

    def _fork_one(self) -> tuple[Finding, str, Sequence[str]]:
        outcome = self._fork().wait(self._order.deadline)
        if outcome.lived:
            self._expected = outcome.result or b""
            return Finding.SAFE, f"it took {outcome.seconds * 1000:.0f} ms", ()
        return self._blame(outcome)

    def _compare(self) -> tuple[Finding, str, Sequence[str]]:
        from prefork.comparison import NotComparable, encode

        try:
            result = encode(self._infer())
        except NotComparable as error:
            return Finding.UNKNOWN, str(error), ()
        return (Finding.SAFE, "", ()) if result == self._expected else self._tell_apart(result)

    def _tell_apart(self, before: bytes) -> tuple[Finding, str, Sequence[str]]:
        """A child has another result. Does the parent, too, get another than it had before?"""
        from prefork.comparison import encode

        if encode(self._infer()) != before:
            return Finding.UNKNOWN, "the parent itself gets another result each time; seed what is random", ()
        return Finding.UNSAFE, "the child computed something else than the parent", ()

    def _fork_again(self) -> tuple[Finding, str, Sequence[str]]:
        return self._judge([self._fork().wait(self._order.deadline)])

    def _use_threads(self) -> tuple[Finding, str, Sequence[str]]:
        """Not bit for bit: how a sum is split over threads shows in its last bits."""
        outcome = self._fork(self._order.threads).wait(self._order.deadline)
        return self._judge([outcome], exactly=False)

    def _fork_many(self) -> tuple[Finding, str, Sequence[str]]:
        canaries = [self._fork() for _ in range(PARALLEL)]
        return self._judge([canary.wait(self._limit("parallel")) for canary in canaries])

    def _write(self) -> tuple[Finding, str, Sequence[str]]:
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

    def _kill(self) -> tuple[Finding, str, Sequence[str]]:
        canaries = [self._fork(wait=_WRITER_SECONDS) for _ in range(_WITNESSES)]
        canaries[0].kill()
        canaries[0].wait(self._order.deadline)
        finding, text, details = self._judge([canary.wait(self._order.deadline) for canary in canaries[1:]])
        return finding, f"after another child was killed: {text}" if text else "", details

    def _fork(self, threads: int = 1, wait: float = 0.0, act: Callable[[], Any] = lambda: None) -> Canary:
        return Canary(partial(_live, self._loaded, self._infer, threads, wait, act))

    def _judge(self, outcomes: Sequence[Outcome], exactly: bool = True) -> tuple[Finding, str, Sequence[str]]:
        for outcome in outcomes:
            if not outcome.lived:
                return self._blame(outcome)
            if exactly and outcome.result != self._expected:
                return self._tell_apart(self._expected)
        return Finding.SAFE, "", ()

    def _blame(self, outcome: Outcome) -> tuple[Finding, str, Sequence[str]]:
        """What a canary died of, and what may be behind it."""
        if outcome.fate is Fate.RAISED and "prefork.comparison.NotComparable" in outcome.words:
            return Finding.UNKNOWN, outcome.reason.partition(": ")[2], ()
        if outcome.fate is Fate.RAISED and (error := self._try_here()) is not None:
            return (
                Finding.UNKNOWN,
                f"the parent cannot infer either: {type(error).__name__}: {error}",
                _cut(outcome.where),
            )
        text = f"the child {outcome.reason}"
        if words := find_last_words(outcome.words):
            text = f"{text}: {words}"
        details = [f"at {frame}" for frame in _cut(outcome.where)]
        if outcome.fate is Fate.HUNG:
            suspects = [h.what for h in self._hazards if h.severity is not Severity.HARMLESS]
            details += [f"in the parent, and in no child: {what}" for what in suspects]
        return Finding.UNSAFE, text, details

    def _try_here(self) -> Exception | None:
        """What inference raises in the parent, if it does."""
        try:
            self._infer()
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is asked for
            return error
        return None


def _cut(where: Sequence[str]) -> list[str]:
    """The frames of the code that is examined, without those of who called it."""
    own = [index for index, frame in enumerate(where) if frame.startswith(f"{_live.__name__} (")]
    return list(where[: own[0] if own else None])[:_MOST_FRAMES]


def _live(loaded: Loaded, infer: Callable[[], Any], threads: int, wait: float, act: Callable[[], Any]) -> bytes:
    """A child's life: as a worker's begins, then one inference."""
    from prefork.comparison import encode
    from prefork.worker import settle

    process.die_with_parent(os.getppid())
    process.restore_signals()
    settle(loaded, threads)
    time.sleep(wait)
    act()
    return encode(infer())
