"""Reports in JSON: written, and read again as the baseline of a later run, in which only what is new fails."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefork.check.steps import FORK_TITLES, Examined, Finding, Fork, Place, sum_up
from prefork.engines.base import InputError
from prefork.platform_matrix.hazards import Severity

VERSION = 1
_MAKE = "make it by `prefork check ... --json > FILE`, with the same options"
_RANDOM = re.compile(r"\btmp[a-z0-9_]{8}\b")  # names that tempfile makes
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?")
_FOLDERS = re.compile(r"(?<![\w/])/(?:[^\s/:;,()]+/)+")


@dataclass(frozen=True, slots=True)
class Item:
    """Something that is not safe, or suspect. text: as it was told."""

    target: str
    fork: str
    step: str
    finding: Finding
    text: str

    @property
    def place(self) -> Place:
        return self.target, self.fork, self.step

    @property
    def key(self) -> tuple[str, ...]:
        """The same for the same thing in another run: without numbers, folders, and where in the code it shows."""
        text = self.text
        if self.step != "hazards":
            text = re.split(r"[:(]", text, maxsplit=1)[0]
        text = _FOLDERS.sub("", _RANDOM.sub("tmp", text))
        return self.target, self.fork, self.step, self.finding, _NUMBER.sub("N", text)

    def __str__(self) -> str:
        what = Severity.SUSPECT if self.finding is Finding.SAFE else self.finding
        return f"{self.target}, {FORK_TITLES[Fork(self.fork)]}, {self.step}: {what}: {self.text}"


def to_json(examined: Sequence[Examined], finding: Finding) -> str:
    """What `read` reads."""
    return json.dumps(describe(examined, finding), indent=2)


def describe(examined: Sequence[Examined], finding: Finding) -> dict[str, Any]:
    """The same as JSON has it."""
    targets = [
        {
            "name": target.name,
            "finding": target.finding,
            "verdicts": [
                {
                    "fork": verdict.fork,
                    "finding": verdict.finding,
                    "counts": verdict.counts,
                    "steps": [asdict(step) for step in verdict.steps],
                }
                for verdict in target.verdicts
            ],
        }
        for target in examined
    ]
    return {"version": VERSION, "finding": finding, "targets": targets}


def list_items(examined: Sequence[Examined]) -> list[Item]:
    """All that is not as it should be; of the hazards, each."""
    found: list[Item] = []
    for target in examined:
        for verdict in target.verdicts:
            for step in verdict.steps:
                place = target.name, verdict.fork.value, step.name
                found += _list_of_step(place, step.finding, step.text, step.details)
    return found


def _list_of_step(place: Place, finding: Finding, text: str, details: Sequence[str]) -> Iterator[Item]:
    if place[2] == "hazards":
        for detail in details:
            severity, _, what = detail.partition(": ")
            if severity != Severity.HARMLESS:
                worst = Finding.UNSAFE if finding is Finding.UNSAFE and severity == Severity.UNSAFE else Finding.SAFE
                yield Item(*place, worst, what)
    elif finding in (Finding.UNSAFE, Finding.UNKNOWN):
        yield Item(*place, finding, text)


def read(path: Path) -> list[Item]:
    """The items of a report. Raises InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--baseline {path}: cannot be read: {error.strerror}; {_MAKE}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--baseline {path}: is not JSON ({_first_line(error)}); {_MAKE}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or "targets" not in content:
        raise InputError(f"--baseline {path}: is no report of prefork check; {_MAKE}")
    if version != VERSION:
        raise InputError(f"--baseline {path}: has version {version!r}, and this prefork reads {VERSION}; {_MAKE}")
    try:
        return list(_read_targets(content["targets"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"--baseline {path}: is damaged ({type(error).__name__}: {error}); {_MAKE}") from error


def _read_targets(targets: Sequence[Mapping[str, Any]]) -> Iterator[Item]:
    for target in targets:
        for verdict in target["verdicts"]:
            for step in verdict["steps"]:
                place = str(target["name"]), Fork(verdict["fork"]).value, str(step["name"])
                details = [str(detail) for detail in step["details"]]
                yield from _list_of_step(place, Finding(step["finding"]), str(step["text"]), details)


def find_new(known: Sequence[Item], found: Sequence[Item]) -> list[Item]:
    """Those of `found` that are not known, as often as they are more."""
    left = Counter(item.key for item in known)
    new = []
    for item in found:
        left[item.key] -= 1
        if left[item.key] < 0:
            new.append(item)
    return new


def list_known(known: Sequence[Item], found: Sequence[Item]) -> set[Place]:
    """Where there is something, and nothing new."""
    return {item.place for item in found} - {item.place for item in find_new(known, found)}


def judge(new: Sequence[Item]) -> Finding:
    """UNSAFE for what is unsafe or suspect, UNKNOWN for what cannot be told; SAFE if nothing is new."""
    findings = [Finding.UNKNOWN if item.finding is Finding.UNKNOWN else Finding.UNSAFE for item in new]
    return sum_up(findings) if findings else Finding.SAFE


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
