"""A library that answers as CUDA's driver does, made of C on the spot."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def build_driver(folder: Path, source: str) -> None:
    """libcuda.so.1 in the folder. Skips the test where none can be made."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler (cc), and the way that Linux finds libraries")
    (folder / "driver.c").write_text(source)
    options = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *options, "-o", folder / "libcuda.so.1", folder / "driver.c"], check=True)
