"""`prefork check`: whether an engine, or anybody's model, survives being forked here. Never imports torch itself.

Every target is examined in a fresh process (prefork.check.examination), because a target that is not safe may take that
process with it, and because what one target leaves behind must not count against the next.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from prefork.engines import registry
from prefork.engines.base import LoadError
from prefork.platform_matrix.canary import describe_exit
from prefork.platform_matrix.matrix import Plan, Strategy, Verdict
from prefork.pool.pipeline import find_owner
from prefork.wire.child import ChildProcess
from prefork.wire.environment import make_environment
from prefork.wire.specification import Specification

LOAD_SECONDS = 600.0  # a large model from a slow disk
PARALLEL = 20  # children at once
_END_SECONDS = 15.0  # to end in once its channel is closed; with torch in it, more than one was measured


class Finding(StrEnum):
    """What came of a step, and of all of them."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    UNKNOWN = "cannot tell"
    SKIPPED = "skipped"  # because of what a step before it found


EXIT_CODES = {Finding.SAFE: 0, Finding.UNSAFE: 1, Finding.UNKNOWN: 2}

STEPS = {
    "matrix": "the platform matrix lets this machine fork",
    "load": "the models load",
    "hazards": "nothing in the process that forks is known to be unsafe",
    "canary": "a forked child infers",
    "same": "its result is the parent's, bit for bit",
    "again": "so is that of a child forked after the parent has used the model",
    "threads": "a child infers on several threads",
    "parallel": f"{PARALLEL} children at once infer, with the same result",
    "write": "a child that writes to a weight dies alone",
    "kill": "a child that is killed dies alone",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at. details: more of it, a line each: hazards, or where something hung."""

    name: str
    finding: Finding
    text: str
    seconds: float = 0.0
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """What is examined: an engine with its options, or functions of the user's that load a model and infer with it.

    required: whether it counts that it cannot be loaded.
    """

    name: str
    engine: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    load: Reference | None = None
    infer: Reference | None = None
    required: bool = True


@dataclass(frozen=True, slots=True)
class Reference:
    """A function of the user's, by the name of its module, or by its file if that is not importable by name.

    path: where the user's process looks for modules.
    """

    module: str
    name: str
    file: str = ""
    path: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Reference:
        """From `package.module:function` or `folder/file.py:function`. Raises LoadError."""
        module, colon, name = text.rpartition(":")
        if not (colon and module and all(part.isidentifier() for part in name.split("."))):
            raise LoadError(f"{text!r} names no function; write package.module:function or file.py:function")
        path = (str(Path.cwd()), *sys.path)
        if module.endswith(".py"):
            return cls(Path(module).stem, name, str(Path(module).resolve()), path)
        return cls(module, name, "", path)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Reference:
        """Of a function that can be found by its name in its module. Raises LoadError."""
        name, file = function.__qualname__, getattr(sys.modules.get(function.__module__), "__file__", None)
        if "<" in name:
            raise LoadError(f"{name} cannot be found by another process; use a top-level function of a module")
        return cls(function.__module__, name, file or "", tuple(sys.path))

    def resolve(self) -> Callable[..., Any]:
        """The function. Raises LoadError."""
        sys.path[:] = [*sys.path, *(entry for entry in self.path if entry not in sys.path)]
        where = self.module if not self.file else f"{self.module} ({self.file})"
        try:
            found: Any = self._import()
        except SystemExit as error:
            raise LoadError(
                f"{where} cannot be imported: {describe_error(error, 'it')}; "
                'put what it runs as a script under `if __name__ == "__main__":`'
            ) from error
        except Exception as error:
            raise LoadError(
                f"{where} cannot be imported: {describe_error(error, 'it')}; "
                "start prefork where Python can import it, or set PYTHONPATH"
            ) from error
        for part in self.name.split("."):
            if not hasattr(found, part):
                raise LoadError(f"{where} has no function {self.name}; check its name")
            found = getattr(found, part)
        if not callable(found):
            raise LoadError(f"{self.module}:{self.name} is no function but of type {type(found).__name__}")
        return found  # type: ignore[no-any-return]

    def _import(self) -> ModuleType:
        """By its file, unless that is what its name leads to."""
        if not self.file:
            return importlib.import_module(self.module)
        try:
            spec = importlib.util.find_spec(self.module)
        except (ImportError, ValueError):  # a parent package is not there, or it is __main__
            spec = None
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == Path(self.file).resolve():
            return importlib.import_module(self.module)
        name = f"{Path(self.file).stem}_{zlib.crc32(self.file.encode(errors='surrogateescape')):08x}"
        if name in sys.modules:  # another function of the same file has been asked for before
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, self.file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{self.file} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module


@dataclass(frozen=True, slots=True)
class Order:
    """What the examining process is told."""

    specification: Specification
    target: Target
    deadline: float  # seconds for a canary
    threads: int


@dataclass(frozen=True, slots=True)
class Phase:
    """What the examining process is at. patience: seconds that it may take until it says something again.

    alone: it runs the target's code itself, with no child: whatever goes wrong tells nothing about forking. who: the
    process, in messages.
    """

    step: str
    patience: float
    alone: bool = False
    who: str = "the process that forks itself"

    @property
    def failure(self) -> Finding:
        """What it means if nothing comes of it."""
        return Finding.UNKNOWN if self.alone else Finding.UNSAFE


def find_targets(engines: Sequence[str], options: Mapping[str, Any]) -> list[Target]:
    """The engines that are asked for; by default all that are installed and have a model of their own on this machine,
    each once. Raises LoadError."""
    if engines:
        for name in engines:
            registry.find(name)
        return [Target(name, name, options) for name in dict.fromkeys(engines)]
    names = [name for name in registry.names() if find_owner(name) == name]
    once = {value: name for name, value in reversed(registry.list_models(names).items())}
    return [Target(name, name, options, required=False) for name in sorted(once.values())]


def conclude(target: Target, steps: Sequence[Step]) -> Finding:
    """The whole from the parts: one unsafe step is enough; an engine that nobody asked for may be missing, and so may a
    step be that says why it does not apply here."""
    findings = {step.name: step.finding for step in steps if step.finding is not Finding.SKIPPED or not step.text}
    if Finding.UNSAFE in findings.values():
        return Finding.UNSAFE
    if findings.get("load") is Finding.UNKNOWN and not target.required:
        return Finding.SKIPPED
    return Finding.SAFE if set(findings.values()) == {Finding.SAFE} else Finding.UNKNOWN


def sum_up(findings: Sequence[Finding]) -> Finding:
    """What all targets say together; if none could be examined, nobody can tell."""
    worst = [finding for finding in (Finding.UNSAFE, Finding.UNKNOWN, Finding.SAFE) if finding in findings]
    return worst[0] if worst else Finding.UNKNOWN


def examine(target: Target, plan: Plan, deadline: float, log: Callable[[str], None] = lambda _: None) -> Iterator[Step]:
    """One step after the other, as they are done; all of STEPS, in that order.

    deadline: seconds that a canary may take. log: gets what the examined code prints.
    """
    yield from go_through(STEPS, judge(plan), _examine(target, plan, deadline, log))


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


def judge(plan: Plan) -> Step:
    """Whether the platform matrix lets this machine fork. Want of memory says nothing about forking."""
    text = f"{plan.row.title}: fork is {plan.row.verdict}"
    claims = tuple(reason.text for reason in plan.row.claims)
    if plan.strategy is not Strategy.FORK:
        return Step("matrix", Finding.UNSAFE, text, details=claims)
    if plan.refusal:
        return Step("matrix", Finding.UNKNOWN if plan.budget.cap < 1 else Finding.UNSAFE, plan.refusal)
    return Step("matrix", Finding.SAFE, text, details=claims if plan.row.verdict is Verdict.CAVEATS else ())


def blame_ourselves(error: Exception) -> tuple[Finding, str]:
    """The finding and the text of a step in which something of prefork's own failed."""
    return Finding.UNKNOWN, f"prefork check itself failed: {type(error).__name__}: {error}"


def _examine(target: Target, plan: Plan, deadline: float, log: Callable[[str], None]) -> Iterator[Step]:
    order = Order(specify(target, plan), target, deadline, max(2, plan.threads))
    yield from follow("check.examination", make_environment(plan), order, target, log)


def specify(target: Target, plan: Plan) -> Specification:
    """What an examining process is to load."""
    load = pickle.dumps(partial(call, target.load)) if target.load is not None else None
    return Specification({target.engine: dict(target.options)} if target.engine else {}, load, plan)


def follow(
    module: str, environment: Mapping[str, str], order: Any, target: Target, log: Callable[[str], None]
) -> Generator[Step, None, Any]:
    """Starts an examining process, and passes on its steps until it ends; returns what it leaves for others, or None.

    module: of prefork, the process's. order: what it is told.
    """
    offline = {} if target.required else {"HF_HUB_OFFLINE": "1"}  # gigabytes that nobody asked for are not fetched
    child = ChildProcess(module, {**environment, **offline})
    phase, began = Phase("load", LOAD_SECONDS, alone=True), time.monotonic()
    legacy = None
    try:
        child.channel.post(order)
        while True:
            kind, content, *_ = child.receive(phase.patience, log)
            began = time.monotonic()
            if kind == "step":
                yield content
            elif kind == "begin":
                phase = content
            elif kind == "leave":
                legacy = content
            elif kind == "failed":
                yield Step(phase.step, Finding.UNKNOWN, content)
            else:
                return legacy
    except TimeoutError:
        text = f"{phase.who} made no progress for {phase.patience:g} s"
        if phase.alone and phase.step != "load":
            text = f"the parent itself has no result after {phase.patience:g} s; give it a longer deadline"
        yield Step(phase.step, phase.failure, text, time.monotonic() - began)
    except EOFError:
        text = f"{phase.who} {describe_end(_wait_for_end(child))}"
        words = tuple(child.stderr_tail.decode(errors="replace").strip().splitlines()[-5:])
        yield Step(phase.step, phase.failure, text, time.monotonic() - began, words)
    finally:
        child.kill()
        child.end(1.0)
    return legacy


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


def describe_error(error: BaseException, who: str) -> str:
    """In a line. sys.exit is known as a call, not as an exception."""
    if isinstance(error, SystemExit):
        return f"{who} called sys.exit({'' if error.code is None else repr(error.code)})"
    return f"{type(error).__name__}: {error}"


@contextmanager
def one_process() -> Iterator[None]:
    """A process that is forked in this block and comes out of it ends there: only who went in goes on."""
    own = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != own:
            os._exit(0)


def call(reference: Reference) -> Any:
    """Loads a user's model. Raises LoadError if it returns nothing."""
    with one_process():
        model = reference.resolve()()
    if model is None:
        raise LoadError(f"{reference.module}:{reference.name} returned nothing; it must return the model")
    return model
