"""Hazards: found in real processes, judged without any."""

from __future__ import annotations

import subprocess
import sys

from platform_matrix.hazards import Severity, Thread, judge_threads

REPORT = """
from platform_matrix.hazards import find_hazards
for hazard in find_hazards():
    print(hazard.name, hazard.severity, hazard.what, sep="|")
"""


def _report(before: str) -> list[list[str]]:
    """The hazards of a fresh process that has done something."""
    done = subprocess.run(
        [sys.executable, "-c", before + REPORT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [line.split("|") for line in done.stdout.splitlines()]


def test_a_clean_process_has_none_and_torch_is_not_imported_to_find_out() -> None:
    assert _report("import sys, atexit; atexit.register(lambda: print('torch' in sys.modules))") == [["False"]]


def test_torch_on_several_threads_is_unsafe() -> None:
    found = _report("import torch; torch.set_num_threads(3)")
    assert [what for name, severity, what in found if (name, severity) == ("openmp", "unsafe") and "3 threads" in what]


def test_a_thread_that_computes_is_unsafe_and_named() -> None:
    busy = "import threading\ndef spin():\n    while True: pass\n"
    (hazard,) = _report(busy + "threading.Thread(target=spin, name='spinner', daemon=True).start()")
    assert hazard[:2] == ["thread", "unsafe"]
    assert "Python thread spinner" in hazard[2]
    assert "running" in hazard[2]


def test_a_thread_that_waits_is_harmless_and_named() -> None:
    waiting = "import threading; threading.Thread(target=threading.Event().wait, name='waiter', daemon=True).start()"
    (hazard,) = _report(waiting)
    assert hazard[:2] == ["thread", "harmless"]
    assert "Python thread waiter" in hazard[2]


def test_a_native_pool_is_told_from_python_threads() -> None:
    """OpenMP's threads, which a computation with two threads leaves behind."""
    hazards = _report(
        "import torch; torch.set_num_threads(2); a = torch.ones(2000, 2000); a @ a; torch.set_num_threads(1)"
    )
    assert any("native thread" in what for _, _, what in hazards)


def test_judgement_needs_no_process() -> None:
    threads = [Thread(1, "loader", False, True), Thread(2, "pool", True, False)]
    assert [hazard.severity for hazard in judge_threads(threads)] == [Severity.HARMLESS, Severity.UNSAFE]
