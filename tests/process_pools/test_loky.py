"""loky's own tests of its executors, with `Runtime` in their place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.process_pools import loky_suite
from tests.process_pools.executor import ALL

try:
    mixin, executors, reusable = loky_suite.load()
except ImportError as error:
    pytest.skip(f"loky's tests are not there ({error})", allow_module_level=True)

pytestmark = pytest.mark.slow

_BROKEN = "a worker that was killed costs nothing: its call is done by another, and the pool lives on"
_INSIDES = "looks at what loky's executor is made of"
_OWN = "arguments that only loky has: reducers, env, timeout, context, and keywords of map"
_NO_GUARD = "a script without `if __name__ == '__main__'`, which loky does not import in its workers"
_LEAKS = "workers are replaced by what they keep of memory, with other limits and no UserWarning"
_RESIZED = "another number of workers is another Runtime"
# What `Runtime` does otherwise, and why.
NOT_APPLICABLE = {
    "ExecutorShutdownTest.test_processes_crash_handling_after_executor_gc": _BROKEN,
    "ExecutorTest.test_killed_child": _BROKEN,
    "ExecutorTest.test_exited_child": _BROKEN,
    "ExecutorTest.test_killed_child_with_cancelled_work_items": _INSIDES,
    "ExecutorTest.test_manager_thread_crash_breaks_executor": _INSIDES,
    "ExecutorTest.test_feeder_error_hook_crash_breaks_executor": _INSIDES,
    "ExecutorTest.test_worker_timeout": _OWN,
    "ExecutorTest.test_serialization": _OWN,
    "ExecutorTest.test_max_depth": "no limit to how deep a Runtime may be in a worker of another",
    "ExecutorTest.test_memory_leak_protection": _LEAKS,
    "TestGetReusableExecutor.test_max_memory_leak_size_env_var": _LEAKS,
    "TestExecutorDeadLock.test_deadlock_kill": _RESIZED,
    "TestExecutorDeadLock.test_crash_races": _BROKEN,
    "TestTerminateExecutor.test_call_item_gc_crash_or_exit": _BROKEN,
    "TestResizeExecutor.test_reusable_executor_resize": _RESIZED,
    "TestResizeExecutor.test_kill_after_resize_call": _RESIZED,
    "TestGetReusableExecutor.test_invalid_process_number": _INSIDES,
    "TestGetReusableExecutor.test_reused_flag": _INSIDES,
    "TestGetReusableExecutor.test_reusable_executor_reuse_true": _INSIDES,
    "TestGetReusableExecutor.test_invalid_context": _OWN,
    "TestGetReusableExecutor.test_pass_start_method_name_as_context": _OWN,
    "TestGetReusableExecutor.test_interactively_defined_executor_no_main": _NO_GUARD,
    "TestGetReusableExecutor.test_interactively_defined_nested_functions": _NO_GUARD,
    "TestGetReusableExecutor.test_interactively_defined_recursive_functions": _NO_GUARD,
    "TestGetReusableExecutor.test_no_deadlock_on_nested_reusable_exector": _NO_GUARD,
    "TestGetReusableExecutor.test_faulthandler_enabled": "loky's workers have faulthandler enabled",
    "TestExecutorInitializer.test_reusable_initializer": _OWN,
}
_NOT_RUN = {
    "ExecutorTest.test_max_depth",
    "ExecutorTest.test_memory_leak_protection",
    "TestGetReusableExecutor.test_max_memory_leak_size_env_var",
    "ExecutorTest.test_killed_child",
    "ExecutorTest.test_killed_child_with_cancelled_work_items",
    "TestGetReusableExecutor.test_reused_flag",  # calls loky itself
}
_EXECUTORS = ("ExecutorShutdownTest", "WaitTests", "AsCompletedTests", "ExecutorTest")
_REUSABLE = (
    "TestExecutorDeadLock",
    "TestTerminateExecutor",
    "TestResizeExecutor",
    "TestGetReusableExecutor",
    "TestExecutorInitializer",
)


class _Executor(mixin.ExecutorMixin):  # type: ignore[name-defined, misc]
    executor_type = loky_suite.LokyExecutor
    context = loky_suite.Context

    def _prime_executor(self) -> None:
        """A `Runtime` needs none."""


def _make(name: str, *bases: type) -> type:
    """A class of tests, in which those that do not apply are expected to fail."""
    for test in dir(bases[-1]):
        full = f"{name}.{test}"
        if reason := NOT_APPLICABLE.get(full):
            pytest.mark.xfail(reason=reason, strict=True, run=full not in _NOT_RUN)(getattr(bases[-1], test))
    return type(name, bases, {"__test__": True})


for _name in _EXECUTORS:
    globals()[f"Test{_name}"] = _make(_name, _Executor, getattr(executors, _name))
for _name in _REUSABLE:
    globals()[_name] = _make(_name, getattr(reusable, _name))


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    for executor in list(ALL):
        executor.supervisor.drain(0.0)
        executor.shutdown()
