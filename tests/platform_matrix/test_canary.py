"""The canary: whatever a forked child does, its parent learns what, in time, and is none the worse for it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from prefork.platform_matrix.canary import Canary, Fate
from prefork.platform_matrix.frames import describe_frame, locate

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Python cannot fork here")


def _print_garbage() -> bytes:
    os.write(1, b"\xff\0garbage" * 100_000)
    print("more of it")
    return b"result"


def _close_everything() -> bytes:
    os.closerange(0, 3)
    return b"result"


def _fork_and_leave() -> bytes:
    if os.fork() == 0:
        time.sleep(600)
    return b"result"


def _fork_and_come_back() -> bytes:
    child = os.fork()
    if child:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
    return b"result"


def _start_a_program() -> bytes:
    return subprocess.run([sys.executable, "-c", "print('ran')"], capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("action", "result"),
    [
        (lambda: b"x" * 3_000_000, b"x" * 3_000_000),
        (lambda: b"", b""),
        (_print_garbage, b"result"),
        (_close_everything, b"result"),
        (_start_a_program, b"ran\n"),
    ],
)
def test_a_canary_that_lives_gives_its_result(action: object, result: bytes) -> None:
    outcome = Canary(action).wait(20)  # type: ignore[arg-type]
    assert (outcome.fate, outcome.result, outcome.reason) == (Fate.LIVED, result, "")


@pytest.mark.parametrize(
    ("action", "fate", "reason"),
    [
        (lambda: os._exit(0), Fate.DIED, "exited with status 0 before it had a result"),
        (lambda: os._exit(7), Fate.DIED, "exited with status 7"),
        (lambda: ctypes.string_at(0), Fate.DIED, "was killed by SIGSEGV"),
        (os.abort, Fate.DIED, "was killed by SIGABRT"),
        (lambda: sys.exit("enough"), Fate.RAISED, "raised SystemExit: enough"),
        (lambda: 1 // 0, Fate.RAISED, "raised ZeroDivisionError: integer division or modulo by zero"),
        (_fork_and_leave, Fate.LEFT_PROCESSES, "left processes behind that it had started, and which were killed"),
        (_fork_and_come_back, Fate.LEFT_PROCESSES, "forked, and the process that it forked came back"),
    ],
)
def test_a_canary_that_does_not_says_why(action: object, fate: Fate, reason: str) -> None:
    outcome = Canary(action).wait(20)  # type: ignore[arg-type]
    assert outcome.fate is fate
    assert outcome.reason.startswith(reason)
    assert not outcome.lived


def _wait_for_ever() -> bytes:
    threading.Event().wait()
    return b""


def test_a_canary_that_hangs_is_killed_in_time_and_says_where() -> None:
    started = time.monotonic()
    outcome = Canary(_wait_for_ever).wait(0.3)
    assert outcome.fate is Fate.HUNG
    assert time.monotonic() - started < 3
    assert "_wait_for_ever (test_canary.py:" in outcome.reason
    assert "wait (threading.py:" in outcome.where[0]


def test_a_canary_that_is_stopped_or_ignores_signals_is_killed_too() -> None:
    before = psutil.Process().children()
    for action in (_stop, _ignore_and_wait):
        outcome = Canary(action).wait(0.2)
        assert outcome.fate is Fate.HUNG
        assert psutil.Process().children() == before, "it is gone, and so is its zombie"


def _stop() -> bytes:
    os.kill(os.getpid(), signal.SIGSTOP)
    return b""


def _ignore_and_wait() -> bytes:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return _wait_for_ever()


def test_many_at_once_do_not_disturb_each_other() -> None:
    canaries = [Canary(_wait_for_ever if number == 3 else str(number).encode) for number in range(30)]
    canaries[3].kill()
    outcomes = [canary.wait(20) for canary in canaries]
    assert outcomes[3].reason.startswith("was killed by SIGKILL")
    others = [outcome.result for number, outcome in enumerate(outcomes) if number != 3]
    assert others == [str(number).encode() for number in range(30) if number != 3]


def test_a_place_is_named_by_its_file_and_in_a_package_by_its_path_there() -> None:
    assert describe_frame("/srv/app/models.py", "7", "infer") == "infer (models.py:7)"
    assert describe_frame("/v/site-packages/faiss/swig.py", "12", "search") == "search (faiss/swig.py:12)"
    hung = [("/v/site-packages/a/b.py", "1", "wait"), (os.__file__, "2", "run"), ("/srv/models.py", "3", "infer")]
    assert locate(hung) == "wait (a/b.py:1), called by infer (models.py:3)"
    assert locate(hung[2:]) == "infer (models.py:3)"
