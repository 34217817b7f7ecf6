"""The work is done on systems that lack what Linux has: see tests.systems."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.prefork.command import copy_sample, read_outputs, run
from tests.systems import SYSTEM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another system is made of what Linux has")
STRATEGIES = {"win32": "spawn", "darwin": "fork"}


@pytest.mark.parametrize("system", STRATEGIES)
def test_samples_are_aligned_as_on_linux(system: str, tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child15")
    done = run("align", tmp_path / "in", tmp_path / "here", "--force-cpu", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    done = run(
        "align", tmp_path / "in", tmp_path / "there", "--force-cpu", "--dtype", "float32", "--json", **{SYSTEM: system}
    )
    assert done.returncode == 0, done.stderr
    assert f'"strategy": "{STRATEGIES[system]}"' in done.stdout
    assert read_outputs(tmp_path / "here") == read_outputs(tmp_path / "there") != {}
