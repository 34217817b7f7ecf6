"""The process in which a target is examined as gunicorn --preload or multiprocessing's fork would have it.

Nothing is prepared: the model is loaded as in any process, with the threads that libraries start by themselves, and
children are forked by os.fork. What the model does not import is not imported here either, torch included.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from prefork.check.messages import ExaminationEnds
from prefork.check.steps import LOAD_SECONDS, REPEAT_SECONDS, Finding
from prefork.check.stepwise import SLACK_SECONDS, StepResult, count_suspects, describe_hazards, find_inference
from prefork.check.targets import call
from prefork.check.trial import Trial
from prefork.engines import registry
from prefork.platform_matrix.canary import Canary, Outcome
from prefork.platform_matrix.hazards import Hazard, Severity, find_hazards, find_shared
from prefork.platform_matrix.inherited import CONNECTION, Shared, identify, list_shared, read_uses
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.child import open_channel
from prefork.wire.specification import LOADED
from prefork.work.comparison import encode
from prefork.work.loaded import Loaded
from prefork.work.torch_state import hide_mps

_MOST_CHILDREN = 20  # one after the other


def main() -> None:
    """Entry point of the examining process."""
    channel = open_channel(forks=True)
    order, _ = channel.receive()
    PlainExamination(channel, order).run()
    os._exit(0)  # whatever the target has left running


class PlainExamination(Trial):
    """The steps, in order. What a child may not survive is named, and tried nevertheless: others do not look."""

    def run(self) -> None:
        if self.take("load", partial(self._load_with, self._load), LOAD_SECONDS, alone=True) is Finding.SAFE:
            self._run_children()
        self._channel.send(ExaminationEnds())

    def _run_children(self) -> None:
        steps: dict[str, Callable[[], StepResult]] = {
            "fresh": self._fork_fresh,
            "hazards": self._look_for_hazards,
            "used": self._fork_used,
            "parallel": self._fork_many,
        }
        for name, step in steps.items():
            finding = self.take(name, step, self._limit() + SLACK_SECONDS)
            if finding is Finding.UNKNOWN or (name == "used" and finding is not Finding.SAFE):
                break

    def _load(self) -> StepResult:
        specification, target = self._order.specification, self._order.target
        assert specification.plan is not None
        if SYSTEM.has_metal and "mps" in specification.plan.hidden:  # which imports torch
            hide_mps()
        engines = {name: registry.create(name, options) for name, options in specification.engines.items()}
        for engine in engines.values():
            engine.setup()
        models = {name: engine.load() for name, engine in engines.items()}
        if target.load is not None:
            models[LOADED] = call(target.load)
        loaded = Loaded(engines, models, None, "cpu")
        infer = find_inference(target, loaded)
        if infer is None:
            return Finding.UNKNOWN, "the engine has no example to infer on", ()
        self._infer = partial(infer, loaded)
        self._note_hazards()
        return Finding.SAFE, "", ()

    def _note_hazards(self) -> None:
        """Those of now, beside those that were there before."""
        descriptors = {identity[0] for identity in identify()}
        found = [_suspect(hazard) for hazard in find_hazards(descriptors)]
        self._hazards = list(dict.fromkeys([*self._hazards, *found]))
        self._shared = list(dict.fromkeys([*self._shared, *find_shared(self._ours, self._openings)]))

    def _fork_fresh(self) -> StepResult:
        """Whatever becomes of the child: what the parent computes is known from here on."""
        outcome, used = self._fork_one(list_shared(self._ours, self._openings))
        self._find_expected()
        return self._judge_one(outcome, used)

    def _look_for_hazards(self) -> StepResult:
        self._note_hazards()
        hazards = [*self._hazards, *self._shared]
        return Finding.SAFE, count_suspects(hazards), describe_hazards(hazards)

    def _fork_used(self) -> StepResult:
        """One child after the other, each right after the parent has used it: threads that it has for that may not have
        come to rest, and whether that does harm is a matter of microseconds."""
        shared = list_shared(self._ours, self._openings)
        until = time.monotonic() + REPEAT_SECONDS
        for _ in range(_MOST_CHILDREN):
            self._infer_here()
            result = self._judge_one(*self._fork_one(shared))
            if result[0] is not Finding.SAFE or time.monotonic() > until:
                break
        return result

    def _fork_many(self) -> StepResult:
        self._infer_here()
        return self._infer_at_once(self._fork)

    def _fork_one(self, shared: Sequence[Shared]) -> tuple[Outcome, list[Shared]]:
        """What becomes of a child, and what it has used that it shares: files, of which it has moved the position, and
        connections."""
        before, inferences = read_uses(shared), self._inferences
        outcome = self._wait(self._fork(self._infer_there))
        after = read_uses(shared) if self._inferences == inferences else before  # else the parent has, perhaps
        return outcome, [one for one, use in after.items() if use != before.get(one)]

    def _judge_one(self, outcome: Outcome, used: Sequence[Shared]) -> StepResult:
        finding, text, details = self._judge([outcome])
        if finding is Finding.SAFE and used:
            text = "the child moved a position in a file that all processes share: two at once read each other's data"
            if all(shared.kind == CONNECTION for shared in used):
                text = "the child used a connection that all processes share: two at once get each other's answers"
            return Finding.UNSAFE, text, list(dict.fromkeys(shared.what for shared in used))
        return finding, text or f"it took {outcome.seconds * 1000:.0f} ms", details

    def _fork(self, act: Callable[[], bytes]) -> Canary:
        return Canary(partial(_live, os.getpid(), act))

    def _infer_there(self) -> bytes:
        return encode(self._infer())


def _suspect(hazard: Hazard) -> Hazard:
    """What prefork would not fork with is tried here."""
    return replace(hazard, severity=Severity.SUSPECT) if hazard.severity is Severity.UNSAFE else hazard


def _live(parent: int, act: Callable[[], bytes]) -> bytes:
    SYSTEM.begin_child(parent)
    return act()
