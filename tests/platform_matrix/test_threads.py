"""Threads: told apart in real processes, and what a fork does to those of real libraries."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefork.platform_matrix.threads import Thread, is_ending, list_threads, trace_python

FORK = """
import json, os, time
from prefork.platform_matrix.threads import list_threads

def lives(work):
    if (pid := os.fork()) == 0:
        work()
        os._exit(0)
    deadline = time.monotonic() + 3
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.01)
    return ended[1] == 0

def name_origins():
    return sorted(thread.origin for thread in list_threads() if thread.waiting and not thread.python)
"""

OPENMP = """
import torch
torch.set_num_threads(2)
square = torch.ones(1000, 1000)
square @ square
torch.set_num_threads(1)

def compute(threads):
    torch.set_num_threads(threads)
    square @ square

origins = name_origins()
print(json.dumps({"origins": origins, "one": lives(lambda: compute(1)), "two": lives(lambda: compute(2))}))
"""

POOLS = """
import numpy, tokenizers
square = numpy.ones((1000, 1000))
square @ square
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
tokenizer.encode_batch(["a b"] * 1000)
origins = name_origins()
blas, words = lives(lambda: square @ square), lives(lambda: tokenizer.encode_batch(["a b"] * 1000))
print(json.dumps({"origins": origins, "blas": blas, "tokenizers": words}))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a thread does")


@pytest.fixture
def waiter() -> Iterator[threading.Thread]:
    """A Python thread that waits until the test has ended."""
    end = threading.Event()

    def wait_for_the_end() -> None:
        end.wait()

    thread = threading.Thread(target=wait_for_the_end, name="waiter")
    thread.start()
    yield thread
    end.set()
    thread.join()


def _find(thread: threading.Thread) -> Thread:
    return next(found for found in list_threads() if found.tid == thread.native_id)


def _run(program: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", FORK + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_waiting_thread_is_named_with_the_function_that_it_runs(waiter: threading.Thread) -> None:
    found = _find(waiter)
    assert (found.name, found.python, found.waiting) == ("waiter", True, True)
    assert "wait_for_the_end (platform_matrix/test_threads.py:" in found.origin


def test_a_thread_that_computes_is_never_taken_for_one_that_waits() -> None:
    """It waits for the interpreter's lock whenever another thread looks at it."""
    end = threading.Event()

    def spin() -> None:
        while not end.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        started = time.monotonic()
        assert _find(thread).waiting is False
        assert time.monotonic() - started < 3
    finally:
        end.set()
        thread.join()


def test_a_thread_that_is_about_to_rest_is_given_time() -> None:
    end = threading.Event()

    def compute_and_rest() -> None:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            pass
        end.wait()

    thread = threading.Thread(target=compute_and_rest)
    thread.start()
    try:
        assert _find(thread).waiting is True
    finally:
        end.set()
        thread.join()


def test_an_executors_thread_ends_by_itself_once_the_executor_is_shut_down() -> None:
    resume = threading.Event()
    executor = ThreadPoolExecutor(1)
    executor.submit(resume.wait)
    (thread,) = executor._threads
    assert not is_ending(thread)
    executor.shutdown(wait=False)
    assert is_ending(thread)
    resume.set()
    thread.join()


def test_a_thread_without_a_function_of_its_own_is_named_by_its_target() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert trace_python(thread) == "threading.Event.wait"
    finally:
        end.set()
        thread.join()


@pytest.mark.slow
def test_openmp_hangs_a_child_that_computes_with_more_than_one_thread() -> None:
    """Why its pool is unsafe, although it rests and a child with one thread does well."""
    found = _run(OPENMP)
    assert any("libgomp" in origin for origin in found.pop("origins"))  # type: ignore[attr-defined]
    assert found == {"one": True, "two": False}


def test_openblas_and_tokenizers_survive_a_fork() -> None:
    """Why their pools are harmless."""
    found = _run(POOLS)
    origins = str(found.pop("origins"))
    assert "openblas" in origins
    assert "tokenizers" in origins
    assert found == {"blas": True, "tokenizers": True}
