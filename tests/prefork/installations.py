"""Installations that lack something: environments of links to what is installed here."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

HERE = Path(sysconfig.get_paths()["purelib"])


class Installation:
    """An environment of its own, of links to what is installed here but for what matches `without`."""

    def __init__(self, folder: Path, without: Collection[str] = ()) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.packages = next(folder.glob("lib/python3*/site-packages"))
        link(HERE, self.packages, without)

    def run(self, *arguments: object, **options: str) -> subprocess.CompletedProcess[str]:
        """prefork, as it is installed there."""
        return self.run_python("-m", "prefork", *arguments, **options)

    def run_python(self, *arguments: object, **options: str) -> subprocess.CompletedProcess[str]:
        command = [os.fspath(self.folder / "bin" / "python"), *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "400", **options}
        environment.pop("PYTHONPATH", None)
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=40, check=False, env=environment
        )

    def add(self, name: str, version: str, **files: str) -> None:
        """What pip notes of a package, and nothing else. files: more of it, by their names without ending."""
        write_metadata(self.packages, name, version, **files)

    def add_module(self, name: str, source: str) -> None:
        (self.packages / f"{name}.py").write_text(source)


def link(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """What is in a folder, in another one."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if not any(fnmatch(path.name, pattern) for pattern in (*without, "__pycache__")):
            (target / path.name).symlink_to(path)


def write_metadata(folder: Path, name: str, version: str, **files: str) -> None:
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, content in files.items():
        (place / f"{file}.txt").write_text(content)
