"""CPython's tests of process pools, as this Python has them, or as `CPYTHON_TESTS` says: a folder with its `test`.

Many distributions leave them out; Debian's are in the package libpython3.11-testsuite.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import importlib
import os
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from prefork.wire.exceptions import RemoteTraceback
from tests.process_pools.executor import RuntimeExecutor

NAME = "test.test_concurrent_futures"
_PARTS = ("test_as_completed", "test_deadlock", "test_init", "test_process_pool", "test_shutdown", "test_wait")  # 3.12
# Of the ways to start processes that the suite knows, the one that is most like a zygote.
_PREFIX = "ProcessPoolForkserver"
ROOT = Path(__file__).parents[2]


@contextmanager
def standing_in() -> Iterator[None]:
    """`Runtime` stands where `ProcessPoolExecutor` does."""
    with (
        mock.patch.object(concurrent.futures, "ProcessPoolExecutor", RuntimeExecutor),
        mock.patch.object(concurrent.futures.process, "_RemoteTraceback", RemoteTraceback),
    ):
        yield


def load() -> dict[str, unittest.TestCase]:
    """The tests, by name without what the suite calls the way of starting. Raises ImportError without a suite."""
    _find()
    with standing_in():
        suite = importlib.import_module(NAME)
        modules = [suite]
        if hasattr(suite, "__path__"):
            modules = [importlib.import_module(f"{NAME}.{part}") for part in _PARTS]
    tests: dict[str, unittest.TestCase] = {}
    for module in modules:
        if hasattr(module, "assert_python_ok"):
            module.assert_python_ok = _run_program  # type: ignore[attr-defined]
        tests |= _list_tests(module)
    return tests


def _list_tests(module: ModuleType) -> dict[str, unittest.TestCase]:
    classes = {name: one for name, one in vars(module).items() if name.startswith(_PREFIX) and isinstance(one, type)}
    loader = unittest.TestLoader()
    return {
        f"{name.removeprefix(_PREFIX)}.{method}": one(method)
        for name, one in classes.items()
        for method in loader.getTestCaseNames(one)
    }


def _find() -> None:
    """Puts a `test` package first that has both what this Python has of it and what is elsewhere. It is found by the
    workers too, which get this process's path."""
    elsewhere = os.environ.get("CPYTHON_TESTS")
    if elsewhere is None:
        return
    import test  # type: ignore[import-not-found]

    folder = Path(tempfile.mkdtemp(prefix="prefork-tests-")) / "test"
    folder.mkdir()
    paths = [str(Path(elsewhere) / "test"), *test.__path__]
    (folder / "__init__.py").write_text(f"__path__ = {paths!r}\n")
    sys.path.insert(0, str(folder.parent))
    for name in [name for name in sys.modules if name.partition(".")[0] == "test"]:
        del sys.modules[name]


def _run_program(*arguments: str) -> tuple[int, bytes, bytes]:
    """In place of `assert_python_ok`: a program of the suite's, with `Runtime`."""
    *options, program = arguments
    name = RuntimeExecutor.__name__
    program = program.replace(
        f"from concurrent.futures import {name}", f"from {RuntimeExecutor.__module__} import {name}"
    )
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *options, program], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.returncode, done.stdout, done.stderr
