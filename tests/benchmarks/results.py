"""What a benchmark has found: shown as it comes, and kept in RESULTS.md, so that a figure can be traced and made again.

    with Results() as results:
        table = results.add_table("what", "measured", title="start")
        table.add("prefork --help", "0.2 s")

RESULTS.md has one section for each command, which its next run replaces: what was typed, on which commit, day and
machine, with which versions, and the tables. A run that fails changes nothing there.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from rich.console import Console
from rich.table import Table as Shown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
PACKAGES = ("prefork", "torch", "torchaudio", "transformers", "stanza", "pyannote.audio", "numpy", "av")
HEAD = """# Results

Written by the scripts in tests/benchmarks: one section for each command, from its newest run. Run the command again to
make the figures again; do not edit them.
"""
_SECTION = re.compile(r"^## `(.+)`$", re.M)


@dataclass(frozen=True)
class Table:
    """Rows with a cell for each column. title: what was measured, or empty."""

    columns: Sequence[str]
    title: str = ""
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Raises ValueError if there are not as many cells as columns."""
        if len(cells) != len(self.columns):
            raise ValueError(f"a row of {self.title or 'this table'} has {len(self.columns)} cells, not {len(cells)}")
        print(*cells, sep=" | ", file=sys.stderr, flush=True)
        self.rows.append(cells)

    def write(self) -> str:
        """As Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        table = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
        return f"{self.title}:\n\n{table}" if self.title else table

    def show(self, console: Console) -> None:
        shown = Shown(*self.columns, title=self.title or None, title_justify="left", box=None)
        for row in self.rows:
            shown.add_row(*row)
        console.print(shown)


class Results:
    """Of one run. command: what was typed, by default what this process was started with. path: the file of all."""

    def __init__(self, command: Sequence[str] | None = None, path: Path = RESULTS) -> None:
        self.command = shlex.join(command or ["python", _shorten(sys.argv[0]), *map(_shorten, sys.argv[1:])])
        self._path = path
        self._parts: list[Table | str] = []
        self._began = datetime.now(UTC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        console = Console(width=None if sys.stdout.isatty() else 160)
        for part in self._parts:
            if isinstance(part, Table):
                part.show(console)
        if kind is None:
            known = self._path.read_text(encoding="utf-8") if self._path.exists() else HEAD
            self._path.write_text(replace_section(known, self.command, self.write()), encoding="utf-8")

    def add_table(self, *columns: str, title: str = "") -> Table:
        table = Table(columns, title)
        self._parts.append(table)
        return table

    def note(self, text: str) -> None:
        """A line that belongs to no table."""
        print(text, flush=True)
        self._parts.append(text.strip())

    def write(self) -> str:
        """As Markdown, without its heading."""
        parts: list[str] = []
        for part in self._parts:
            if isinstance(part, str) and parts and parts[-1].startswith("- "):
                parts[-1] += f"- {part}\n"
            else:
                parts.append(f"- {part}\n" if isinstance(part, str) else part.write())
        return "\n".join([f"{describe_commit()}, {self._began:%Y-%m-%d}, {describe_machine()}\n", *parts])


def replace_section(known: str, command: str, text: str) -> str:
    """The file with this command's section, in the order of the commands."""
    head, *rest = _SECTION.split(known)
    sections = dict(zip(rest[::2], (part.strip("\n") for part in rest[1::2]), strict=True))
    sections[command] = text.strip("\n")
    return head.rstrip("\n") + "\n" + "".join(f"\n## `{name}`\n\n{sections[name]}\n" for name in sorted(sections))


def describe_commit() -> str:
    """Of the checkout; whether anything but the results has changed since."""
    changed = _ask_git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    return f"Commit {_ask_git('rev-parse', '--short=12', 'HEAD') or 'unknown'}{' with changes' if changed else ''}"


def describe_machine() -> str:
    """What the figures depend on: processor, cores, memory, GPU, kernel, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 1e9
    machine = f"{_read_processor()}, {cores} cores, {memory:.1f} GB, {_read_gpus() or 'no GPU'}"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{machine}; {system}; " + ", ".join(f"{name} {_read_version(name)}" for name in PACKAGES)


def _read_processor() -> str:
    try:
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        names = []
    return str(names[0]) if names else platform.machine()


def _read_gpus() -> str:
    """As the driver says; no driver is initialised in this process."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ", ".join(name.strip() for name in names if name.strip())


def _read_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _ask_git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _shorten(argument: str) -> str:
    """A path of the repository or beside it, as it is from the repository; no folder of this machine alone."""
    path = Path(argument)
    if not (path.is_absolute() or path.exists()):
        return argument
    for base, prefix in ((ROOT, ""), (ROOT.parent, "../")):
        if path.absolute().is_relative_to(base):  # not resolved: ../shared may be a link
            return prefix + path.absolute().relative_to(base).as_posix()
    return path.name if path.is_absolute() else argument
