"""The steps of `prefork check`, and what is concluded from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from prefork.check.targets import Target

LOAD_SECONDS = 600.0  # a large model from a slow disk
PARENT_SECONDS = 600.0  # for one inference, if nobody has given a deadline
LEAST_SECONDS = 3.0  # for an inference in a child,
PATIENCE = 20  # and as many times as long as the parent took
PARALLEL = 8  # children at once
REPEAT_SECONDS = 1.2  # for which each of them infers again and again,
REPEATS = 2, 1000  # at least and at most as often


class Fork(StrEnum):
    """A way to fork that a verdict is about."""

    PREFORK = "prefork"  # one thread before the fork, weights in one read-only mapping, files opened anew
    PLAIN = "plain"  # os.fork, and nothing more


FORK_TITLES = {Fork.PREFORK: "prefork", Fork.PLAIN: "gunicorn --preload, multiprocessing fork"}


Place = tuple[str, str, str]  # target, way to fork, step


class Finding(StrEnum):
    """The result of a step, and of all steps."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    UNKNOWN = "cannot tell"
    SKIPPED = "skipped"  # because of an earlier step


EXIT_CODES = {Finding.SAFE: 0, Finding.UNSAFE: 1, Finding.UNKNOWN: 2}

STEPS = {
    "matrix": "the platform matrix lets this machine fork",
    "load": "the models load",
    "hazards": "nothing in the process that forks is known to be unsafe",
    "canary": "a forked child infers",
    "same": "its result is the parent's, bit for bit",
    "again": "a child that is forked after the parent has used the model computes the same",
    "threads": "a child infers on several threads",
    "parallel": f"{PARALLEL} children at once infer again and again, always with the same result",
    "write": "a child that writes to a weight dies alone",
    "kill": "a child that is killed dies alone",
}

PLAIN_STEPS = {
    "matrix": STEPS["matrix"],
    "load": "the model loads, as in any process",
    "fresh": "a child that is forked before the parent has used the model computes the same",
    "hazards": "what a child lacks and what it shares is named",
    "used": STEPS["again"],
    "parallel": STEPS["parallel"],
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at. details: more of it, a line each: hazards, or where something hung."""

    name: str
    finding: Finding
    text: str
    seconds: float = 0.0
    details: tuple[str, ...] = ()


def conclude(target: Target, steps: Sequence[Step]) -> Finding:
    """The finding for a target. One unsafe step is enough. An engine that was not asked for may be missing, and a step
    may be skipped if it gives the reason."""
    findings = {step.name: step.finding for step in steps if step.finding is not Finding.SKIPPED or not step.text}
    if Finding.UNSAFE in findings.values():
        return Finding.UNSAFE
    if findings.get("load") is Finding.UNKNOWN and not target.required:
        return Finding.SKIPPED
    return Finding.SAFE if set(findings.values()) == {Finding.SAFE} else Finding.UNKNOWN


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a target that is forked in one way. counts: whether it decides the target's finding."""

    fork: Fork
    steps: tuple[Step, ...]
    finding: Finding
    counts: bool = True

    @property
    def decisive(self) -> Step | None:
        """The step that says why it is not safe."""
        return next((step for step in self.steps if step.finding is self.finding), None)

    def __str__(self) -> str:
        """'prefork: unsafe (canary: the child hung)'."""
        step = self.decisive if self.finding is not Finding.SAFE else None
        why = f" ({step.name}: {step.text})" if step is not None and step.text else ""
        return f"{FORK_TITLES[self.fork]}: {self.finding}{why}"


@dataclass(frozen=True, slots=True)
class Examined:
    """A target, and the verdict for each way to fork it that was tried."""

    name: str
    verdicts: tuple[Verdict, ...]

    @property
    def finding(self) -> Finding:
        """The worst of those that count."""
        findings = [verdict.finding for verdict in self.verdicts if verdict.counts]
        return Finding.SKIPPED if set(findings) == {Finding.SKIPPED} else sum_up(findings)


def sum_up(findings: Sequence[Finding]) -> Finding:
    """The finding for all targets: UNKNOWN if none could be examined."""
    worst = [finding for finding in (Finding.UNSAFE, Finding.UNKNOWN, Finding.SAFE) if finding in findings]
    return worst[0] if worst else Finding.UNKNOWN


def blame_ourselves(error: Exception) -> tuple[Finding, str]:
    """The finding and the text of a step in which something of prefork's own failed."""
    return Finding.UNKNOWN, f"prefork check itself failed: {type(error).__name__}: {error}"
