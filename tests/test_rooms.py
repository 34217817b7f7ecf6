"""The rooms of the house: what may import what is held by import-linter (.ci/run); here is what that does not see."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "av", "rich", "transformers", "stanza", "prefork.engines.text.formats")


@pytest.mark.exec
@pytest.mark.parametrize(
    "code",
    [
        "from prefork import Runtime, Job, JobResult, HangLimit, Stage",
        "import prefork.pool.processes, prefork.pool.supervisor, prefork.wire.messages",
        "import prefork.memory.governor, prefork.memory.memlog",
    ],
)
def test_the_supervisor_s_side_loads_nothing_heavy(code: str) -> None:
    shown = f"{code}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
