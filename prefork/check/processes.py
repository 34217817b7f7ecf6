"""The examining processes as the command has them: started, followed step by step, ended.

Every target is examined in a fresh process, because a target that is not safe may take that process with it, and
because what one target leaves behind must not count against the next.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial

from prefork.check.messages import DeviceOrder, DeviceResult, ExaminationEnds, ForkOrder, StepBegins, StepEnds
from prefork.check.steps import LOAD_SECONDS, Finding, Step, blame_ourselves
from prefork.check.targets import Target, call
from prefork.platform_matrix.canary import describe_exit
from prefork.platform_matrix.matrix import Plan
from prefork.wire.child import ChildProcess
from prefork.wire.messages import LoadFailed
from prefork.wire.specification import Specification

_END_SECONDS = 15.0  # to end in once its channel is closed; with torch in it, more than one was measured


def go_through(names: Iterable[str], verdict: Step, steps: Iterator[Step]) -> Iterator[Step]:
    """The verdict of the matrix, which is the first step, and the others as they are done, if that lets them be; all of
    the names, each once."""
    left = list(names)
    last = left[-1]
    yield verdict
    left.remove(verdict.name)
    if verdict.finding is Finding.SAFE:
        try:
            for step in steps:
                if step.name in left:  # else it is no step, or has been told before
                    left.remove(step.name)
                    yield step
        except Exception as error:  # noqa: BLE001  what goes wrong here says nothing about the target
            yield Step(left.pop(0) if left else last, *blame_ourselves(error))
    yield from (Step(name, Finding.SKIPPED, "") for name in left)


def specify(target: Target, plan: Plan) -> Specification:
    """What an examining process is to load."""
    load = pickle.dumps(partial(call, target.load)) if target.load is not None else None
    return Specification({target.engine: dict(target.options)} if target.engine else {}, load, plan)


def follow(
    module: str,
    environment: Mapping[str, str],
    order: ForkOrder | DeviceOrder,
    log: Callable[[str], None],
) -> Generator[Step, None, bytes | None]:
    """Starts an examining process, and passes on its steps until it ends; returns what the device has computed, if it
    says so.

    module: of prefork, the process's. order: what it is told.
    """
    offline = {} if order.target.required else {"HF_HUB_OFFLINE": "1"}  # do not download gigabytes unasked
    child = ChildProcess(module, {**environment, **offline})
    current, began = StepBegins("load", LOAD_SECONDS, alone=True), time.monotonic()
    numbers: bytes | None = None
    try:
        child.channel.post(order)
        while True:
            message = child.receive(current.patience, log)
            began = time.monotonic()
            match message:
                case StepBegins():
                    current = message
                case StepEnds(step):
                    yield step
                case DeviceResult(computed):
                    numbers = computed
                case ExaminationEnds():
                    return numbers
                case LoadFailed(reason):  # the module cannot be imported
                    yield Step(current.step, Finding.UNKNOWN, reason)
    except TimeoutError:
        text = f"{current.who} made no progress for {current.patience:g} s"
        if current.alone and current.step != "load":
            text = f"the parent itself has no result after {current.patience:g} s; give it a longer deadline"
        yield Step(current.step, current.failure, text, time.monotonic() - began)
    except EOFError:
        text = f"{current.who} {describe_end(_wait_for_end(child))}"
        printed = tuple(child.stderr_tail.decode(errors="replace").strip().splitlines()[-5:])
        yield Step(current.step, current.failure, text, time.monotonic() - began, printed)
    finally:
        child.kill()
        child.end(1.0)
    return numbers


def _wait_for_end(child: ChildProcess) -> int | None:
    """The exit status of one whose channel is closed; None if it runs on."""
    until = time.monotonic() + _END_SECONDS
    while (status := child.poll()) is None and time.monotonic() < until:
        time.sleep(0.05)
    return status


def describe_end(status: int | None) -> str:
    """Words for what became of the examined process."""
    if status is None:
        return f"closed its channel, did not end within {_END_SECONDS:g} s, and was killed by prefork check"
    return describe_exit(status)
