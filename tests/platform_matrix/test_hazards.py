"""Hazards: found in real processes, judged without any."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

from prefork.platform_matrix.hazards import (
    Hazard,
    Severity,
    judge_driver,
    judge_mps,
    judge_native_count,
    judge_threads,
)
from prefork.platform_matrix.threads import Thread

REPORT = """
import json
from prefork.platform_matrix.hazards import find_hazards
print(json.dumps([(hazard.name, hazard.severity, hazard.what) for hazard in find_hazards()]))
"""

HOLDER = """
import gc, threading
from queue import Queue

class Store:
    shared = threading.Lock()

    def __init__(self):
        self.guard = threading.RLock()
        self.queue = Queue()

    def hold(self, ready):
        with self.guard, self.queue.mutex, self.shared:
            ready.set()
            threading.Event().wait()

store, ready, mine = Store(), threading.Event(), threading.RLock()
threading.Thread(target=store.hold, args=[ready], daemon=True).start()
ready.wait()
mine.acquire()
gc.freeze()
"""

IMPORT = """
import pathlib, sys, tempfile, threading
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "slow_module.py").write_text("import __main__; __main__.begun.set(); __main__.end.wait()")
sys.path.append(str(folder))
begun, end = threading.Event(), threading.Event()
threading.Thread(target=__import__, args=["slow_module"], daemon=True).start()
begun.wait()
"""

CONNECTION = """
import socket
from prefork.platform_matrix.hazards import find_hazards
listening = socket.create_server(("127.0.0.1", 0))
ours, port = socket.create_connection(listening.getsockname()), listening.getsockname()[1]
found = find_hazards()
assert len(found) == 1 and f"connected to 127.0.0.1 port {port}" in found[0].what, found
assert find_hazards(ours=[ours.fileno()]) == []
ours.close()
"""

TORCH = """
import torch
torch.set_num_threads(3)
torch.cuda._is_in_bad_fork = lambda: True
"""


def _report(before: str) -> list[tuple[str, str, str]]:
    """Name, severity and text of the hazards of a fresh process that has done something."""
    done = subprocess.run(
        [sys.executable, "-c", before + REPORT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [(name, severity, what) for name, severity, what in json.loads(done.stdout)]


def _is(hazards: Sequence[Hazard], name: str, severity: Severity, *words: str) -> bool:
    """Whether there is one hazard only, this one, and it says these words and a remedy."""
    (hazard,) = hazards
    assert all(word in hazard.what for word in words), hazard.what
    return (hazard.name, hazard.severity, bool(hazard.remedy)) == (name, severity, True)


def test_a_clean_process_has_none_and_neither_torch_nor_the_engines_are_imported_to_find_out() -> None:
    assert _report("") == []
    imported = "import sys; import prefork.platform_matrix.hazards as h; h.find_hazards(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True, timeout=60, check=True)
    ours = [name for name in modules.stdout.split() if name.startswith("prefork.")]
    assert "torch" not in modules.stdout.split()
    assert ours
    assert all(name.startswith("prefork.platform_matrix") for name in ours)


def test_torch_on_several_threads_and_cuda_in_the_process_that_forked_this_one_are_unsafe() -> None:
    found = {(name, severity): what for name, severity, what in _report(TORCH)}
    assert "3 threads" in found["openmp", "unsafe"]
    assert "by the process that forked this one" in found["cuda", "unsafe"]


def test_a_python_thread_that_waits_is_suspect_and_its_origin_named() -> None:
    waiting = "import threading\ndef poll(): threading.Event().wait()\n"
    ((name, severity, what),) = _report(waiting + "threading.Thread(target=poll, name='poller', daemon=True).start()")
    assert (name, severity) == ("thread", "suspect")
    assert "Python thread poller" in what
    assert "poll (<string>:2)" in what


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a thread does")
def test_a_python_thread_that_computes_is_unsafe() -> None:
    busy = "import threading\ndef spin():\n    while True: pass\n"
    ((name, severity, what),) = _report(busy + "threading.Thread(target=spin, name='spinner', daemon=True).start()")
    assert (name, severity) == ("thread", "unsafe")
    assert "Python thread spinner" in what
    assert "running" in what


def test_locks_of_other_threads_are_named_by_who_holds_them() -> None:
    """Frozen objects among them. Not what the asking thread owns, nor what Python holds while a thread lives."""
    found = {(severity, what.split(" is locked")[0]) for name, severity, what in _report(HOLDER) if name == "lock"}
    assert found == {
        ("unsafe", "__main__.Store.guard"),
        ("suspect", "__main__.Store.shared"),
        ("suspect", "queue.Queue.mutex, also threading.Condition._lock"),
    }


def test_an_import_under_way_in_another_thread_is_unsafe() -> None:
    thread, importing = sorted(_report(IMPORT), reverse=True)
    assert importing[:2] == ("import", "unsafe")
    assert "another thread is importing slow_module" in importing[2]
    assert "slow_module.py:1)" in thread[2]


def test_a_connection_is_suspect_unless_it_is_ours() -> None:
    assert _report(CONNECTION) == []


@pytest.mark.parametrize(
    ("origin", "name", "severity"),
    [
        ("libgomp.so.1", "openmp", Severity.UNSAFE),
        ("libgomp-a34b3233.so.1", "openmp", Severity.UNSAFE),
        ("libiomp5.so", "openmp", Severity.SUSPECT),
        ("libomp.so.5", "openmp", Severity.SUSPECT),
        ("libscipy_openblas64_-32a4b2a6.so", "blas", Severity.HARMLESS),
        ("libmkl_core.so.2", "blas", Severity.SUSPECT),
        ("tokenizers.abi3.so", "tokenizers", Severity.HARMLESS),
        ("cygrpc.cpython-311-x86_64-linux-gnu.so", "grpc", Severity.SUSPECT),
        ("libtorch_cpu.so", "torch", Severity.SUSPECT),
        ("libcuda.so.550.54", "cuda", Severity.UNSAFE),
        ("libown.so", "thread", Severity.SUSPECT),
        ("", "thread", Severity.SUSPECT),
    ],
)
def test_a_resting_native_thread_is_judged_by_the_library_that_started_it(
    origin: str, name: str, severity: Severity
) -> None:
    assert _is(judge_threads([Thread(7, "python", False, True, origin)]), name, severity, "(7)", origin)


def test_the_thread_of_an_allocator_is_told_from_the_librarys_own_by_its_name() -> None:
    """pyarrow has both: jemalloc's thread from the moment it is imported, its pools' once they are used."""
    own, allocators = judge_threads(
        [
            Thread(1, "jemalloc_bg_thd", False, True, "libarrow.so.2600"),
            Thread(2, "python", False, True, "libarrow.so.2600"),
        ]
    )[::-1]
    assert _is([allocators], "allocator", Severity.HARMLESS, "jemalloc_bg_thd (1)")
    assert _is([own], "thread", Severity.SUSPECT, "python (2)", "libarrow.so.2600")


def test_a_running_thread_is_unsafe_whoever_started_it() -> None:
    blas = [Thread(tid, "python", False, tid == 3, "libopenblas.so.0") for tid in (1, 2, 3)]
    running, waiting = judge_threads(blas)
    assert _is([running], "blas", Severity.UNSAFE, "2 native threads running: python (1), python (2)")
    assert _is([waiting], "blas", Severity.HARMLESS, "1 native thread waiting: python (3)")
    assert _is(judge_threads([Thread(4, "pool", True, False, ending=True)]), "thread", Severity.UNSAFE, "running")


def test_a_thread_whose_executor_is_gone_is_harmless_and_one_of_unknown_state_is_not() -> None:
    assert _is(judge_threads([Thread(4, "loader", True, True, ending=True)]), "thread", Severity.HARMLESS, "loader")
    assert _is(judge_threads([Thread(4, "loader", True, None, ending=True)]), "thread", Severity.SUSPECT, "loader")


def test_native_threads_on_macos_are_suspect_if_there_are_more_than_pythons() -> None:
    assert judge_native_count(threads=2, python=2) == []
    assert _is(judge_native_count(threads=5, python=2), "objc", Severity.SUSPECT, "3 native threads")


def test_metal_is_unsafe_once_used() -> None:
    assert judge_mps([]) == []
    assert _is(judge_mps(["2 tensors"]), "mps", Severity.UNSAFE, "2 tensors")


def test_the_driver_is_unsafe_if_initialised_here_or_in_the_process_that_forked_this_one() -> None:
    assert _is(judge_driver(initialized=True, inherited=True), "cuda", Severity.UNSAFE, "by this process")
    assert _is(judge_driver(initialized=False, inherited=True), "cuda", Severity.UNSAFE, "that forked this one")
    assert judge_driver(initialized=False, inherited=False) == []
