"""What those with a Mac or a Windows machine are to run runs here, and prints what its page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def test_the_page_lists_every_script() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"python tests/portability/(\w+\.py)", page))
    assert listed == {path.name for path in FOLDER.glob("*.py")} - {Path(__file__).name}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("descriptors.py", r"0 of 300 lost"),
        ("orphans.py spawn", r"all gone"),
        ("orphans.py fork", r"all gone"),
        ("deaths.py", r"(\w+: worker 0 .*\n7\n){3}"),
        ("files.py", r"replaced while it was read: new\nbelow 351 characters: deep"),
        ("interrupts.py", r"interrupted: exit code 130, \d+ files are left\nthe same command: exit code 0, 16 files.*"),
        ("mps.py", r"usable=(yes|no\nwhy=.+)"),
    ],
)
def test_a_script_prints_what_its_page_says(command: str, printed: str) -> None:
    name, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(printed, done.stdout.strip() + "\n" * (command == "deaths.py")), done.stdout
