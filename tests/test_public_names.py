"""`prefork.__all__`: what a program needs to name, and no more."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import prefork

# Reached through a Plan alone: to look at, not to name.
_OF_PLANS = {"Budget", "Device", "Devices", "Facts", "Reason", "Request", "Row", "Verdict", "VideoBudget"}


def _list_parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in typing.get_args(hint):
        for one in part if isinstance(part, list) else [part]:
            yield from _list_parts(one)


def _list_named(public: Any) -> Iterator[tuple[str, str]]:
    """Classes of prefork's that its signatures and fields name, and where."""

    def is_callable(member: object) -> bool:
        return inspect.isfunction(member) or isinstance(member, property)

    members = dict(inspect.getmembers(public, is_callable)) if inspect.isclass(public) else {"": public}
    functions = [
        m.fget if isinstance(m, property) else m for n, m in members.items() if n[:1] != "_" or n == "__init__"
    ]
    places = [function for function in functions if getattr(function, "__module__", "").startswith("prefork")]
    for place in [*places, *([public] if dataclasses.is_dataclass(public) else [])]:
        names = {**vars(sys.modules[place.__module__]), "torch": torch}
        for name, hint in typing.get_type_hints(place, names).items():
            for part in _list_parts(hint):
                if inspect.isclass(part) and part.__module__.startswith("prefork"):
                    yield part.__name__, f"{public.__name__}.{getattr(place, '__name__', place)}: {name}"


@pytest.mark.parametrize("name", prefork.__all__)
def test_everything_that_a_public_signature_names_is_public(name: str) -> None:
    public = getattr(prefork, name)
    if not inspect.isclass(public):  # an alias for what typing has
        return
    missing = {where: named for named, where in _list_named(public) if named not in prefork.__all__}
    assert not {where for where, named in missing.items() if named not in _OF_PLANS}


def test_the_page_for_programmers_names_what_is_public_and_nothing_else() -> None:
    page = (Path(__file__).parents[1] / "prefork" / "docs" / "python.md").read_text(encoding="utf-8")
    table = page.partition("## Names and errors")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(prefork.__all__)


def test_every_error_of_prefork_is_a_prefork_error() -> None:
    errors = [getattr(prefork, name) for name in prefork.__all__]
    errors = [error for error in errors if inspect.isclass(error) and issubclass(error, BaseException)]
    assert {error.__name__ for error in errors} >= {"InputError", "LoadError", "OutOfMemory", "Stopped", "WorkerDied"}
    assert all(issubclass(error, prefork.PreforkError) for error in errors)


def test_the_names_are_those_that_exist_and_in_order() -> None:
    assert sorted(prefork.__all__) == prefork.__all__
    assert {name for name in prefork.__all__ if not hasattr(prefork, name)} == set()
    with pytest.raises(AttributeError, match="has no attribute 'Crew'"):
        prefork.Crew  # noqa: B018


@pytest.mark.exec
def test_a_type_checker_sees_what_is_there_at_run_time(tmp_path: Path) -> None:
    code = "import prefork\n" + "\n".join(f"x{i}: object = prefork.{n}" for i, n in enumerate(prefork.__all__))
    (tmp_path / "program.py").write_text(code)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "",
        "--cache-dir",
        tmp_path / "cache",
        "program.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
