"""The process in which a target of `prefork check` is examined: it loads as a zygote does, then forks for real."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from functools import partial

from prefork.check.messages import ExaminationEnds
from prefork.check.steps import LOAD_SECONDS, Finding
from prefork.check.stepwise import SLACK_SECONDS, StepResult, find_inference, judge_hazards
from prefork.check.trial import Trial
from prefork.platform_matrix.canary import Canary, Fate
from prefork.platform_matrix.hazards import Severity, find_hazards, find_shared
from prefork.platform_matrix.inherited import CONNECTION, identify
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.child import open_channel
from prefork.wire.shared_tracker import list_descriptors
from prefork.work import loading
from prefork.work.comparison import encode
from prefork.work.loaded import Loaded

_WRITER_SECONDS = 0.2  # how long the witnesses of a death wait for it
_WITNESSES = 3
_DECISIVE = ("load", "hazards", "canary", "same", "again")  # what fails there shows that no more should be forked


def main() -> None:
    """Entry point of the examining process."""
    channel = open_channel(forks=True)
    order, _ = channel.receive()
    Examination(channel, order).run()
    os._exit(0)  # whatever the target has left running


class Examination(Trial):
    """The steps, in order; ends at the first that shows that no more should be forked."""

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
            finding = self.take(name, step, LOAD_SECONDS if alone else self._limit() + SLACK_SECONDS, alone)
            if finding is not Finding.SAFE and name in _DECISIVE:
                break
        self._channel.send(ExaminationEnds())

    def _load(self) -> StepResult:
        self._loaded: Loaded = loading.load(self._order.specification)
        infer = find_inference(self._order.target, self._loaded)
        if infer is None:
            return Finding.UNKNOWN, "the engine has no example to infer on", ()
        self._infer = partial(infer, self._loaded)
        return Finding.SAFE, f"{self._loaded.count_weights() / 1e6:.0f} MB of weights", ()

    def _look_for_hazards(self) -> StepResult:
        self._hazards = find_hazards({identity[0] for identity in identify()})
        self._shared = find_shared(self._ours, self._openings)
        hazards = [*self._hazards, *self._shared]
        finding, text, details = judge_hazards(hazards)
        cleared_by_nobody = [h for h in self._hazards if h.severity is Severity.SUSPECT]
        cleared_by_nobody += [h for h in self._shared if h.name == CONNECTION]
        if self._order.target.load is not None and finding is Finding.SAFE and cleared_by_nobody:
            text = f"{text}; a Runtime has no inference to try and spawns its workers"
        return finding, text, details

    def _fork_one(self) -> StepResult:
        self._first = self._wait(self._fork())
        if self._first.lived:
            return Finding.SAFE, f"it took {self._first.seconds * 1000:.0f} ms", ()
        return self._blame(self._first)

    def _compare(self) -> StepResult:
        self._find_expected()
        return self._judge([self._first])

    def _fork_again(self) -> StepResult:
        return self._judge([self._wait(self._fork())])

    def _use_threads(self) -> StepResult:
        """Not bit for bit: how a sum is split over threads shows in its last bits."""
        return self._judge([self._wait(self._fork(threads=self._order.threads))], exactly=False)

    def _fork_many(self) -> StepResult:
        return self._infer_at_once(self._fork)

    def _write(self) -> StepResult:
        arena = self._loaded.arena
        assert arena is not None
        before = arena.digest()
        witnesses = [self._fork(wait=_WRITER_SECONDS) for _ in range(_WITNESSES)]
        writer = self._wait(self._fork(lambda: bytes([ctypes.memset(arena.address, 255, 1) & 1])))
        finding, text, details = self._judge([self._wait(witness) for witness in witnesses])
        if finding is not Finding.SAFE:
            return finding, f"after another child had written to a weight: {text}", details
        if writer.fate is not Fate.DIED or arena.digest() != before:
            return Finding.UNSAFE, "a child could write to the shared weights", ()
        return Finding.SAFE, f"it {writer.reason}", ()

    def _kill(self) -> StepResult:
        canaries = [self._fork(wait=_WRITER_SECONDS) for _ in range(_WITNESSES)]
        canaries[0].kill()
        self._wait(canaries[0])
        finding, text, details = self._judge([self._wait(canary) for canary in canaries[1:]])
        return finding, f"after another child was killed: {text}" if text else "", details

    def _fork(self, act: Callable[[], bytes] | None = None, threads: int = 1, wait: float = 0.0) -> Canary:
        """A child as a worker is; it infers once if it is to do nothing else."""
        return Canary(
            partial(_live, os.getpid(), self._loaded, act or self._infer_there, threads, wait), _close_inherited
        )

    def _infer_there(self) -> bytes:
        return encode(self._infer())


def _close_inherited(kept: set[int]) -> None:
    """As a worker does: it has files of its own, and shares nothing else."""
    SYSTEM.close_inherited(kept | list_descriptors())


def _live(parent: int, loaded: Loaded, act: Callable[[], bytes], threads: int, wait: float) -> bytes:
    """A child's life: as a worker's begins, then what it is to do."""
    from prefork.work.worker import settle

    SYSTEM.begin_child(parent)
    SYSTEM.restore_signals()
    settle(loaded, threads)
    time.sleep(wait)
    return act()
