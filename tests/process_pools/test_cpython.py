"""CPython's own tests of `ProcessPoolExecutor`, with `Runtime` in its place."""

from __future__ import annotations

import sys
import unittest

import pytest

from tests.process_pools import suite
from tests.process_pools.executor import ALL

try:
    TESTS = suite.load()
    MISSING = ""
except (ImportError, unittest.SkipTest) as error:
    TESTS = {}
    MISSING = f"this Python has no tests of its process pools ({error}); with CPYTHON_TESTS=folder, theirs are run"

_STARTED = "all workers are started at once, from the process that has loaded, and not as calls come"
_RETRIED = "a worker that was killed costs nothing: its call is done by another, and the pool lives on"
_STRATEGY = "how processes start is `strategy`, and forked ones may be replaced too"
_OWN_ERROR = "what raises as it is unpickled is its own call's error, and breaks no pool"
_INSIDES = "replaces what ProcessPoolExecutor is made of"
# What `Runtime` does otherwise, and why.
NOT_APPLICABLE = {
    "FailingInitializerTest.test_initializer": "hands over a multiprocessing queue, which only inheritance can share",
    "ProcessPoolShutdownTest.test_cancel_futures": "nothing has begun before the models are loaded: all is cancelled",
    "ProcessPoolShutdownTest.test_processes_terminate": _STARTED,
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": _STARTED,
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": _STARTED,
    "ProcessPoolExecutorTest.test_killed_child": _RETRIED,
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": _STRATEGY,
    "ExecutorDeadlockTest.test_error_at_task_unpickle": _OWN_ERROR,
    "ExecutorDeadlockTest.test_exit_at_task_unpickle": _OWN_ERROR,
    "ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler": _OWN_ERROR,
    "ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler": _OWN_ERROR,
}
if sys.version_info >= (3, 13):
    NOT_APPLICABLE["ProcessPoolExecutorTest.test_python_finalization_error"] = _INSIDES


def _mark(name: str) -> object:
    reason = NOT_APPLICABLE.get(name)
    return pytest.param(name, marks=pytest.mark.xfail(reason=reason, strict=True) if reason else ())


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.skipif(sys.platform != "linux", reason="the tests end what they start by what Linux has")
@pytest.mark.parametrize("name", [_mark(name) for name in TESTS] or ["none"])
def test_of_process_pools(name: str) -> None:
    with suite.standing_in():
        result = unittest.TestResult()
        try:
            TESTS[name].run(result)
        finally:
            for executor in list(ALL):
                executor.supervisor.drain(0.0)
                executor.shutdown()
    for _, text in [*result.errors, *result.failures]:
        pytest.fail(text, pytrace=False)
    for _, reason in result.skipped:
        pytest.skip(reason)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_what_does_not_apply_exists() -> None:
    assert not set(NOT_APPLICABLE) - set(TESTS)
