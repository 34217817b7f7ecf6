#!/usr/bin/env python3
"""The versions that requirements.lock names, beside those that are installed, and what to install to see the newest.

    .ci/versions.py difference    what is installed here in another version than the lock's, as a table
    .ci/versions.py open-ended    the requirements of pyproject.toml without their upper ends, one a line

`difference` exits with 1 if there is any. On GitHub it also writes an annotation, and the table into the job's summary.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Pin:
    """A line of the lock. marker: the environments it is for; None for all."""

    name: str
    version: str
    marker: Marker | None

    def is_for(self, environment: Mapping[str, str]) -> bool:
        return self.marker is None or self.marker.evaluate(dict(environment))


def read_lock(text: str) -> list[Pin]:
    """Raises ValueError for a line that is not an exact version of a package."""
    return [_read_pin(line) for line in text.splitlines() if line and not line.startswith("#")]


def _read_pin(line: str) -> Pin:
    requirement = Requirement(line.split(" #", maxsplit=1)[0].rstrip())
    [specifier] = requirement.specifier
    if specifier.operator != "==" or requirement.url or requirement.extras:
        raise ValueError(f"not an exact version: {line}; renew the lock with .ci/lock")
    return Pin(canonicalize_name(requirement.name), specifier.version, requirement.marker)


def read_requirements(project: Mapping[str, Any]) -> list[Requirement]:
    """What pyproject.toml asks for, extras included; what the project asks of itself is left out."""
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [wanted for line in lines if (wanted := Requirement(line)).name != project["name"]]


def drop_upper_end(requirement: Requirement) -> Requirement:
    """`torch>=2.11,<=2.14.1` becomes `torch>=2.11`, and `torchaudio==2.11.0` becomes `torchaudio>=2.11.0`."""
    lower = [each for each in requirement.specifier if each.operator in (">=", ">", "==", "~=")]
    opened = Requirement(str(requirement))
    opened.specifier = SpecifierSet(
        ",".join(f"{'>' if each.operator == '>' else '>='}{each.version.removesuffix('.*')}" for each in lower)
    )
    return opened


def find_differences(pins: Iterable[Pin], installed: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(name, locked, installed) of each package that is not what the lock says; "-" where one of them lacks it.

    A package that only the lock has is no difference: it belongs to an extra, or to another system.
    """
    locked = {pin.name: pin.version for pin in pins}
    return [
        (name, locked.get(name, "-"), version)
        for name, version in sorted(installed.items())
        if version.split("+")[0] != locked.get(name)
    ]


def _print_difference() -> bool:
    """Whether there is none."""
    here = {key: str(value) for key, value in default_environment().items()}
    pins = [pin for pin in read_lock((ROOT / "requirements.lock").read_text()) if pin.is_for(here)]
    ours = {"prefork", "pip"}  # the lock has neither
    installed = {canonicalize_name(each.name): each.version for each in distributions()}
    rows = find_differences(pins, {name: version for name, version in installed.items() if name not in ours})
    table = ["| package | locked | here |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    print("\n".join(table) if rows else "what is installed is what the lock says")
    if "GITHUB_ACTIONS" in os.environ and rows:
        listed = ", ".join(f"{name} {locked} -> {version}" for name, locked, version in rows)
        print(f"::error title=other versions than requirements.lock::{listed}")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a") as file:
            print(f"Python {here['python_version']}, {sys.platform}\n", *table, sep="\n", file=file)
    return not rows


def main(arguments: list[str]) -> int:
    match arguments:
        case ["difference"]:
            return 0 if _print_difference() else 1
        case ["open-ended"]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            print("\n".join(str(drop_upper_end(wanted)) for wanted in read_requirements(project)))
        case _:
            print(f"not {' '.join(arguments) or 'nothing'}: say difference or open-ended", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
