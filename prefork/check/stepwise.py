"""What all examining processes do: one step after the other, and what came of each in words."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prefork.check.messages import StepBegins, StepEnds
from prefork.check.steps import Finding, Step, blame_ourselves
from prefork.check.targets import Target, one_process
from prefork.platform_matrix.canary import Outcome
from prefork.platform_matrix.hazards import Hazard, Severity
from prefork.wire.channel import Channel
from prefork.wire.endings import find_fatal_line
from prefork.wire.exceptions import describe_error
from prefork.wire.specification import LOADED
from prefork.work import loading
from prefork.work.loaded import Loaded

SLACK_SECONDS = 15.0  # what a step may take beyond its canaries' deadline

StepResult = tuple[Finding, str, Sequence[str]]  # what comes of a step, in words, and details


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


def describe_death(outcome: Outcome) -> str:
    """What a child died of, a line."""
    reason = find_fatal_line(outcome.words)
    return f"the child {outcome.reason}{': ' + reason if reason else ''}"


def find_inference(target: Target, loaded: Loaded) -> Callable[[Loaded], Any] | None:
    """The user's function on the user's model, else the engine on its example; None if it has none."""
    if target.infer is not None:
        return partial(_infer_with, target.infer.resolve())
    has_example = any(engine.example() is not None for engine in loaded.engines.values())
    return Loaded.try_examples if has_example else None


def _infer_with(infer: Callable[[Any], Any], loaded: Loaded) -> Any:
    return infer(loaded.models[LOADED])


def judge_hazards(hazards: Sequence[Hazard]) -> StepResult:
    """What of this process a forked child may not survive."""
    unsafe = [hazard for hazard in hazards if hazard.severity is Severity.UNSAFE]
    if unsafe:
        return Finding.UNSAFE, "; ".join(hazard.what for hazard in unsafe), describe_hazards(hazards)
    return Finding.SAFE, count_suspects(hazards), describe_hazards(hazards)


def count_suspects(hazards: Sequence[Hazard]) -> str:
    """How many there are for the next steps to try."""
    suspects = sum(hazard.severity is not Severity.HARMLESS for hazard in hazards)
    return f"{suspects or 'nothing'} suspect{', which the next steps try' * bool(suspects)}"


def describe_hazards(hazards: Sequence[Hazard]) -> list[str]:
    """A line for each, the worst first."""
    order = [Severity.UNSAFE, Severity.SUSPECT, Severity.HARMLESS]
    lines = []
    for hazard in sorted(hazards, key=lambda hazard: order.index(hazard.severity)):
        remedy = "" if hazard.severity is Severity.HARMLESS else f"; {hazard.remedy}"
        lines.append(f"{hazard.severity}: {hazard.what}{remedy}")
    return lines
