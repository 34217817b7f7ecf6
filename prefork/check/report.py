"""What `prefork check` shows: a table as the steps are done, JSON, JUnit XML, and annotations on GitHub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.text import Text

from prefork.check import device_check
from prefork.check.device_check import DEVICE_STEPS
from prefork.check.fork_check import examine
from prefork.check.steps import STEPS, Finding, Step, conclude
from prefork.check.targets import Target
from prefork.engines.base import InputError
from prefork.platform_matrix.matrix import Plan

_TITLES = {**STEPS, **DEVICE_STEPS}
_STYLES = {Finding.SAFE: "green", Finding.UNSAFE: "red", Finding.UNKNOWN: "yellow", Finding.SKIPPED: "dim"}


@dataclass(frozen=True, slots=True)
class Examined:
    """A target, all its steps, and what they say together."""

    name: str
    steps: tuple[Step, ...]
    finding: Finding

    @property
    def decisive(self) -> Step | None:
        """The step that says why it is not safe."""
        return next((step for step in self.steps if step.finding is self.finding), None)


def check(targets: Sequence[Target], plan: Plan, deadline: float, console: Console, verbose: bool) -> list[Examined]:
    """Examines the targets one after the other and shows each step when it is done."""

    def log(text: str) -> None:
        if verbose:
            console.print(Text(text, "dim"))

    results = []
    for target, part in [(target, part) for part in device_check.part(plan) for target in targets]:
        on_gpu = part.device == "cuda"
        name = _printable(f"{target.name} on {part.labels[0]}" if on_gpu else target.name)
        console.print(Text(name, "bold"))
        steps = []
        for step in (device_check.examine if on_gpu else examine)(target, part, deadline, log):
            steps.append(_clean(step))
            show_step(console, steps[-1])
        results.append(Examined(name, tuple(steps), conclude(target, steps)))
        show_conclusion(console, results[-1])
    return results


def _clean(step: Step) -> Step:
    """As it can be printed anywhere, whatever the examined code has said."""
    return replace(step, text=_printable(step.text), details=tuple(map(_printable, step.details)))


def show_step(console: Console, step: Step) -> None:
    """A line for the step, and, if it is not as it should be, its details below it."""
    seconds = f"{step.seconds:.2f} s" if step.seconds else ""
    wrong = step.finding in (Finding.UNSAFE, Finding.UNKNOWN)
    line = Text(f"  {step.name:<10}")
    line.append(f"{step.finding:<13}", _STYLES[step.finding])
    line.append(f"{seconds:>8}  ")
    if wrong:
        line.append(step.text)
    else:
        line.append(f"{_TITLES[step.name]}{': ' * bool(step.text)}{step.text}", "dim")
    console.print(line, soft_wrap=True)
    for detail in step.details if wrong else ():
        console.print(Text(f"{'':35}{detail}", "dim"), soft_wrap=True)


def show_conclusion(console: Console, examined: Examined) -> None:
    text = f"{examined.name}: {examined.finding}"
    if (step := examined.decisive) is not None and examined.finding is not Finding.SAFE:
        text = f"{text} ({step.name}: {step.text})"
    console.print(Text(text, f"bold {_STYLES[examined.finding]}"), soft_wrap=True)


def to_json(examined: Sequence[Examined], finding: Finding) -> str:
    targets = [{"name": e.name, "finding": e.finding, "steps": [asdict(step) for step in e.steps]} for e in examined]
    return json.dumps({"finding": finding, "targets": targets}, indent=2)


def write_junit(path: Path, examined: Sequence[Examined]) -> None:
    """A test suite for each target, a test for each step. Raises InputError if it cannot be written."""
    root = ElementTree.Element("testsuites", name="prefork check")
    for target in examined:
        counts = {finding: sum(step.finding is finding for step in target.steps) for finding in Finding}
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"prefork check {target.name}",
            tests=str(len(target.steps)),
            failures=str(counts[Finding.UNSAFE]),
            errors=str(counts[Finding.UNKNOWN]),
            skipped=str(counts[Finding.SKIPPED]),
            time=f"{sum(step.seconds for step in target.steps):.3f}",
        )
        for step in target.steps:
            _add_case(suite, target.name, step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; give another --junit") from error


def _add_case(suite: ElementTree.Element, target: str, step: Step) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"prefork.check.{target}", name=step.name, time=f"{step.seconds:.3f}"
    )
    kind = {Finding.UNSAFE: "failure", Finding.UNKNOWN: "error", Finding.SKIPPED: "skipped"}.get(step.finding)
    if kind is not None:
        problem = ElementTree.SubElement(case, kind, message=_printable(step.text or _TITLES[step.name]))
        problem.text = _printable("\n".join(step.details))


def _printable(text: str) -> str:
    """XML knows no control characters, UTF-8 no half surrogates."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def annotate(examined: Sequence[Examined], environment: Mapping[str, str] = os.environ) -> list[str]:
    """GitHub's workflow commands for what is not safe; none if this is not run there."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    lines = []
    for target in examined:
        for step in target.steps:
            level = {Finding.UNSAFE: "error", Finding.UNKNOWN: "warning"}.get(step.finding)
            if level is not None:
                title = _escape(f"prefork check {target.name}: {step.name}").replace(":", "%3A").replace(",", "%2C")
                lines.append(f"::{level} title={title}::{_escape(chr(10).join([step.text, *step.details]))}")
    return lines


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
