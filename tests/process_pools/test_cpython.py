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

# What `Runtime` does otherwise, and why. By Python's version where only some have the test.
NOT_APPLICABLE: dict[str, str] = {}


def _mark(name: str) -> object:
    reason = NOT_APPLICABLE.get(name)
    return pytest.param(name, marks=pytest.mark.xfail(reason=reason, strict=True) if reason else ())


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
