"""A model that is tried in forked children: how long they may take, and whether what comes of them is the parent's."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefork.check.messages import ForkOrder
from prefork.check.steps import (
    LEAST_SECONDS,
    PARALLEL,
    PARENT_SECONDS,
    PATIENCE,
    REPEAT_SECONDS,
    REPEATS,
    Finding,
)
from prefork.check.stepwise import SLACK_SECONDS, ParentFailed, StepResult, Stepwise, describe_death
from prefork.check.targets import one_process
from prefork.platform_matrix.canary import Canary, Fate, Outcome
from prefork.platform_matrix.hazards import Hazard, Severity
from prefork.platform_matrix.inherited import identify
from prefork.platform_matrix.openings import Openings
from prefork.wire.channel import Channel
from prefork.wire.exceptions import describe_error
from prefork.work.comparison import NotComparable, encode

_MOST_FRAMES = 12
_OWN = ("_infer_with (", "_infer_there (", "_repeat (", "_live (")  # what calls the code that is examined
_AGAIN_SECONDS, _MOST_AGAIN = 0.1, 20  # for the parent to get the same result again


class Trial(Stepwise):
    """Infers with the model here and in children, and judges what comes of it."""

    def __init__(self, channel: Channel, order: ForkOrder) -> None:
        super().__init__(channel)
        self._order = order
        self._openings = Openings()
        self._openings.watch()
        self._ours = identify()  # descriptors
        self._hazards: list[Hazard] = []  # of this process, which a child may lack
        self._shared: list[Hazard] = []  # by a child with this process
        self._infer: Callable[[], Any] = lambda: None
        self._expected = b""
        self._inferences = 0  # of the parent itself
        self._seconds = 0.0  # that it took for one, the longest

    def _limit(self, share: int = 1) -> float:
        """Seconds that a child may take for one inference. share: inferences that a core has to do meanwhile."""
        if self._order.deadline is not None:
            return self._order.deadline * share
        return max(LEAST_SECONDS, PATIENCE * self._seconds * share)

    def _wait(self, canary: Canary, share: int = 1) -> Outcome:
        """What became of it. If it is late, the parent is asked first. Raises ParentFailed if that is too slow, too."""
        self._begin(self._limit(share) + SLACK_SECONDS)
        if not canary.has_ended(self._limit(share)):
            try:
                self._ask_parent()
            except ParentFailed:
                canary.kill()
                canary.wait(0.0)
                raise
            self._begin(self._limit(share) + SLACK_SECONDS)
        return canary.wait(self._limit(share))

    def _ask_parent(self) -> None:
        """Raises ParentFailed if it takes so long itself that nothing follows from a child that is late. It infers only
        if it has not done so yet: what it shares with a child that hangs may be in disorder."""
        if not self._inferences:
            self._infer_here()
        deadline = self._order.deadline
        if deadline is not None and 2 * self._seconds > deadline:
            raise ParentFailed(
                f"the parent itself took {self._seconds:.1f} s for one inference, and a child may take "
                f"{deadline:g} s; give it a longer deadline"
            )

    def _infer_here(self) -> bytes:
        """What the parent itself computes, encoded. Raises ParentFailed."""
        self._begin(self._order.deadline or PARENT_SECONDS, alone=True)
        self._inferences += 1
        started = time.monotonic()
        try:
            with one_process():
                result = self._infer()
            self._seconds = max(self._seconds, time.monotonic() - started)
            return encode(result)
        except NotComparable as error:
            raise ParentFailed(str(error)) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = reversed(traceback.extract_tb(error.__traceback__)[1:])
            where = [f"at {frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in frames]
            text = f"the parent itself cannot infer: {describe_error(error, 'infer')}"
            raise ParentFailed(text, where[:_MOST_FRAMES]) from error

    def _infer_at_once(self, fork: Callable[[Callable[[], bytes]], Canary]) -> StepResult:
        """Children that infer again and again at the same time, each from its first moment on: what a library does in a
        child after a fork may still be under way. fork: makes one that does something."""
        until = time.monotonic() + REPEAT_SECONDS
        canaries = [fork(lambda: _repeat(self._infer, self._expected, until)) for _ in range(PARALLEL)]
        share = math.ceil(PARALLEL * REPEATS[0] / (os.cpu_count() or 1))
        outcomes = [self._wait(canary, share) for canary in canaries]
        for outcome in outcomes:
            if not outcome.lived:
                return self._blame(outcome)
        counts = [list(map(int, (outcome.result or b"").split())) for outcome in outcomes]
        done, wrong = (sum(column) for column in zip(*counts, strict=True))
        if wrong:
            text = f"{wrong} of {done} results of {PARALLEL} children at once differ from the parent's"
            return Finding.UNSAFE, text, self._name_suspects()
        return Finding.SAFE, f"{done} inferences", ()

    def _judge(self, outcomes: Sequence[Outcome], exactly: bool = True) -> StepResult:
        for outcome in outcomes:
            if not outcome.lived:
                return self._blame(outcome)
            if exactly and outcome.result != self._expected:
                return Finding.UNSAFE, "the child's result differs from the parent's", self._name_suspects()
        return Finding.SAFE, "", ()

    def _find_expected(self) -> None:
        """What the parent itself computes, again and again. Raises ParentFailed if that is not always the same."""
        until = time.monotonic() + _AGAIN_SECONDS
        self._expected = self._infer_here()
        for _ in range(_MOST_AGAIN):
            if self._infer_here() != self._expected:
                raise ParentFailed("the parent's own result changes each time; seed all random generators")
            if time.monotonic() > until:
                break

    def _blame(self, outcome: Outcome) -> StepResult:
        """What a canary died of, and what may be behind it."""
        if outcome.fate is Fate.RAISED and not self._inferences:
            self._infer_here()  # if the parent fails, too, forking is not to blame
        details = [f"at {frame}" for frame in _cut(outcome.where)]
        return Finding.UNSAFE, describe_death(outcome), [*details, *self._name_suspects()]

    def _name_suspects(self) -> list[str]:
        lacking = [h.what for h in self._hazards if h.severity is not Severity.HARMLESS]
        shared = [h.what for h in self._shared if h.severity is not Severity.HARMLESS]
        return [
            *dict.fromkeys(f"in the parent, and in no child: {what}" for what in lacking),
            *dict.fromkeys(f"shared by all: {what}" for what in shared),
        ]


def _repeat(infer: Callable[[], Any], expected: bytes, until: float) -> bytes:
    """In a child: how often it has inferred, and how often with another result."""
    least, most = REPEATS
    done = wrong = 0
    while done < least or (done < most and time.monotonic() < until):
        done += 1
        wrong += encode(infer()) != expected
    return b"%d %d" % (done, wrong)


def _cut(where: Sequence[str]) -> list[str]:
    """The frames of the code that is examined, without those of who called it."""
    own = [index for index, frame in enumerate(where) if frame.startswith(_OWN)]
    return list(where[: own[0] if own else None])[:_MOST_FRAMES]
