"""How the result of `prefork check` is told: a line for each step as the steps are done, JUnit XML, and annotations on
GitHub. JSON is in `baseline`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.text import Text

from prefork.check import device_check
from prefork.check.device_check import DEVICE_STEPS
from prefork.check.fork_check import examine, examine_plainly
from prefork.check.steps import FORK_TITLES, PLAIN_STEPS, STEPS, Examined, Finding, Fork, Place, Step, Verdict, conclude
from prefork.check.targets import Target
from prefork.engines.base import InputError
from prefork.platform_matrix.hazards import Severity
from prefork.platform_matrix.matrix import Plan

_TITLES = {Fork.PREFORK: {**DEVICE_STEPS, **STEPS}, Fork.PLAIN: PLAIN_STEPS}
_STYLES = {Finding.SAFE: "green", Finding.UNSAFE: "red", Finding.UNKNOWN: "yellow", Finding.SKIPPED: "dim"}
_WRONG = (Finding.UNSAFE, Finding.UNKNOWN)
_SUSPECTS = "hazards"  # the step whose details are told even if it is safe


def check(
    targets: Sequence[Target],
    plan: Plan,
    deadline: float | None,
    console: Console,
    verbose: bool,
    forks: Collection[Fork] = (Fork.PREFORK,),
    counted: Collection[Fork] = (Fork.PREFORK,),
) -> list[Examined]:
    """Examines the targets one after the other and shows each step when it is done.

    forks: the ways to fork that are tried; on an NVIDIA GPU, prefork's alone. counted: those that decide the finding.
    """

    def log(text: str) -> None:
        if verbose:
            console.print(Text(text, "dim"))

    results = []
    for target, part in [(target, part) for part in device_check.part(plan) for target in targets]:
        on_gpu = part.device == "cuda"
        name = _printable(f"{target.name} on {part.labels[0]}" if on_gpu else target.name)
        console.print(Text(name, "bold"))
        verdicts = []
        for fork in (Fork.PREFORK,) if on_gpu else forks:
            act = device_check.examine if on_gpu else {Fork.PREFORK: examine, Fork.PLAIN: examine_plainly}[fork]
            if len(forks) > 1 and not on_gpu:
                console.print(Text(f" {FORK_TITLES[fork]}"))
            steps = []
            for step in act(target, part, deadline, log):
                steps.append(_clean(step))
                show_step(console, steps[-1], _TITLES[fork][step.name])
            verdicts.append(Verdict(fork, tuple(steps), conclude(target, steps), on_gpu or fork in counted))
        results.append(Examined(name, tuple(verdicts)))
        show_conclusion(console, results[-1])
    return results


def _clean(step: Step) -> Step:
    """As it can be printed anywhere, whatever the examined code has said."""
    return replace(step, text=_printable(step.text), details=tuple(map(_printable, step.details)))


def show_step(console: Console, step: Step, title: str) -> None:
    """A line for the step, and its details below it if it is not as it should be, or names what is suspect."""
    seconds = f"{step.seconds:.2f} s" if step.seconds else ""
    wrong = step.finding in _WRONG
    line = Text(f"  {step.name:<10}")
    line.append(f"{step.finding:<13}", _STYLES[step.finding])
    line.append(f"{seconds:>8}  ")
    if wrong:
        line.append(step.text)
    else:
        line.append(f"{title}{': ' * bool(step.text)}{step.text}", "dim")
    console.print(line, soft_wrap=True)
    for detail in _list_details(step):
        console.print(Text(f"{'':35}{detail}", "dim"), soft_wrap=True)


def _list_details(step: Step) -> list[str]:
    """Those that everybody is told."""
    if step.name == _SUSPECTS:
        return [detail for detail in step.details if not detail.startswith(f"{Severity.HARMLESS}: ")]
    return list(step.details) if step.finding in _WRONG else []


def show_conclusion(console: Console, examined: Examined) -> None:
    """The verdict for each way to fork, in one line."""
    line = Text(f"{examined.name}: ", "bold")
    for number, verdict in enumerate(examined.verdicts):
        style = _STYLES[verdict.finding]
        line.append(f"{'; ' * bool(number)}{verdict}", f"bold {style}" if verdict.counts else style)
    console.print(line, soft_wrap=True)


def show_news(console: Console, path: Path | None, new: Sequence[object], gone: Sequence[object]) -> None:
    """What is new since a baseline was written, and what is no longer there."""
    for title, items, style in (("new", new, "red"), ("gone", gone, "green")):
        for item in items:
            console.print(Text(_printable(f"{title} since {path}: {item}"), style), soft_wrap=True)
    if not new:
        console.print(Text(_printable(f"nothing new since {path}"), "bold green"), soft_wrap=True)


def write_junit(path: Path, examined: Sequence[Examined], known: Collection[Place] = ()) -> None:
    """A test suite for each target and way to fork, a test for each step. What is wrong where it does not count, or is
    known, is a test that was skipped. Raises InputError if it cannot be written."""
    root = ElementTree.Element("testsuites", name="prefork check")
    for target in examined:
        for verdict in target.verdicts:
            _add_suite(root, target.name, verdict, known)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; give another --junit") from error


def _add_suite(root: ElementTree.Element, target: str, verdict: Verdict, known: Collection[Place]) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=f"prefork check {target}: {FORK_TITLES[verdict.fork]}")
    kinds = [_add_case(suite, target, step, verdict, known) for step in verdict.steps]
    suite.set("tests", str(len(kinds)))
    for attribute, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(kinds.count(kind)))
    suite.set("time", f"{sum(step.seconds for step in verdict.steps):.3f}")


def _add_case(suite: ElementTree.Element, target: str, step: Step, verdict: Verdict, known: Collection[Place]) -> str:
    """The kind of its result; empty for one that has passed."""
    name = f"prefork.check.{target}.{verdict.fork}"
    case = ElementTree.SubElement(suite, "testcase", classname=name, name=step.name, time=f"{step.seconds:.3f}")
    kind = {Finding.UNSAFE: "failure", Finding.UNKNOWN: "error", Finding.SKIPPED: "skipped"}.get(step.finding, "")
    text = step.text or _TITLES[verdict.fork][step.name]
    is_known = (target, verdict.fork.value, step.name) in known
    if step.finding in _WRONG and (is_known or not verdict.counts):
        kind, text = "skipped", f"{step.finding}, which {'is known' if is_known else 'does not count here'}: {text}"
    if kind:
        problem = ElementTree.SubElement(case, kind, message=_printable(text))
        problem.text = _printable("\n".join(step.details))
    elif step.details:
        ElementTree.SubElement(case, "system-out").text = _printable("\n".join(step.details))
    return kind


def _printable(text: str) -> str:
    """XML knows no control characters, UTF-8 no half surrogates."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def annotate(
    examined: Sequence[Examined], known: Collection[Place] = (), environment: Mapping[str, str] = os.environ
) -> list[str]:
    """GitHub's workflow commands for what is not safe, or suspect; none if this is not run there."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    pairs = [(target.name, verdict) for target in examined for verdict in target.verdicts]
    return [line for name, verdict in pairs for line in _annotate(name, verdict, known)]


def _annotate(name: str, verdict: Verdict, known: Collection[Place]) -> Iterator[str]:
    for step in verdict.steps:
        level = {Finding.UNSAFE: "error", Finding.UNKNOWN: "warning"}.get(step.finding)
        details = _list_details(step)
        if level is None and not details:
            continue
        if level is None or not verdict.counts or (name, verdict.fork.value, step.name) in known:
            level = "notice"
        which = f"{verdict.fork}: {step.name}"
        title = _escape(f"prefork check {name}: {which}").replace(":", "%3A").replace(",", "%2C")
        yield f"::{level} title={title}::{_escape(chr(10).join([step.text, *details]))}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
