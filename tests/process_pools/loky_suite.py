"""loky's tests of executors, with `Runtime` in the place of its own. `LOKY_TESTS`: its source distribution, unpacked.

Its tests are copied, with other names where they name loky's executor, also in the programs that they start.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from prefork import Stopped, WorkerDied
from prefork.wire.exceptions import RemoteTraceback
from tests.process_pools.executor import RuntimeExecutor

ROOT = Path(__file__).parents[2]
PACKAGE = "loky_tests"
_MODULES = ("__init__", "utils", "_executor_mixin", "_test_process_executor", "test_reusable_executor")
_HERE = "tests.process_pools.loky_suite"
_OTHERWISE = (
    ("from loky.process_executor import {executor_type}", f"from {_HERE} import {{executor_type}}"),
    ("from loky import get_reusable_executor", f"from {_HERE} import get_reusable_executor"),
    ("import loky\n        import psutil", f"import {_HERE} as loky\n        import psutil"),
    ("from tests._", f"from {PACKAGE}._"),
    ("    @pytest.mark.broken_pool\n", ""),
    ("    @pytest.mark.high_memory\n", ""),
    (
        "import _RemoteTraceback, TerminatedWorkerError\n",
        "import _RemoteTraceback\nfrom prefork import WorkerDied as TerminatedWorkerError\n",
    ),
    # loky puts a PicklingError around what pickling raises, and breaks with what unpickling raises.
    ("(id, (ExitAtPickle(),), PicklingError, None)", "(id, (ExitAtPickle(),), SystemExit, None)"),
    (f"PicklingError):\n{' ' * 20}e.submit(id, ExitAt", f"SystemExit):\n{' ' * 20}e.submit(id, ExitAt"),
    (
        '(return_instance, (ExitAtUnpickle,), BrokenProcessPool, "SystemExit")',
        "(return_instance, (ExitAtUnpickle,), SystemExit, None)",
    ),
    (f'BrokenProcessPool,\n{" " * 12}"UnpicklingError"', f"UnpicklingError,\n{' ' * 12}None"),
    ('BrokenProcessPool, "SystemExit"', 'SystemExit, "SystemExit"'),
    ('BrokenProcessPool, "UnpicklingError"', 'UnpicklingError, "UnpicklingError"'),
    ("(BrokenProcessPool) as exc_info:\n            f.result()", "(RuntimeError) as exc_info:\n            f.result()"),
)


class Event:
    """A multiprocessing Event reaches only processes that inherit it; this one reaches all, as a file."""

    def __init__(self) -> None:
        descriptor, self._path = tempfile.mkstemp(prefix="prefork-event-")
        os.close(descriptor)
        self.clear()

    def set(self) -> None:
        Path(self._path).touch()

    def clear(self) -> None:
        Path(self._path).unlink(missing_ok=True)

    def is_set(self) -> bool:
        return Path(self._path).exists()

    def wait(self, timeout: float | None = None) -> bool:
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (until is None or time.monotonic() < until):
            time.sleep(0.01)
        return self.is_set()


class Context:
    """In the place of multiprocessing's: how processes start is for `Runtime` to say."""

    Event = Event

    @staticmethod
    def get_start_method() -> str:
        return "spawn"


class _Flags:
    broken = None

    def __init__(self, executor: RuntimeExecutor) -> None:
        self._supervisor = executor.supervisor

    @property
    def shutdown(self) -> bool:
        return self._supervisor.is_closing


class LokyExecutor(RuntimeExecutor):
    """With loky's arguments."""

    def __init__(
        self,
        max_workers: int | None = None,
        job_reducers: Any = None,
        result_reducers: Any = None,
        timeout: float | None = None,
        context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        env: Any = None,
    ) -> None:
        if job_reducers or result_reducers or env or timeout:
            raise NotImplementedError("reducers, env and timeout are loky's own")
        super().__init__(max_workers, initializer=initializer, initargs=initargs)
        self._flags = _Flags(self)

    def shutdown(self, wait: bool = True, *, kill_workers: bool = False, cancel_futures: bool = False) -> None:
        if kill_workers:
            self.supervisor.drain(0.0)
        super().shutdown(wait, cancel_futures=cancel_futures)


def _list_ours(process: psutil.Process) -> list[tuple[int, str]]:
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found.append((child.pid, " ".join(child.cmdline())))
    return [(pid, line) for pid, line in found if "from prefork." in line]


def _translate(match: str | None) -> str | None:
    """How loky says that a process has exited, as `Runtime` says it."""
    return match and re.sub(r"EXIT\\\((\d+)\\\)", r"exited with status \1", match)


_local = threading.local()
REUSED: set[LokyExecutor] = set()


def get_reusable_executor(
    max_workers: int | None = None, *, kill_workers: bool = False, reuse: bool | str = "auto", **options: Any
) -> LokyExecutor:
    """One for each thread, until another is asked for."""
    asked = (max_workers, options)
    known: LokyExecutor | None = getattr(_local, "executor", None)
    if known is not None and not known.supervisor.is_closing:
        if reuse is True or (reuse and asked == _local.asked):
            return known
        known.shutdown(kill_workers=kill_workers)
        REUSED.discard(known)
    _local.asked = asked
    _local.executor = made = LokyExecutor(max_workers, **{**options, "timeout": None, "env": None})
    REUSED.add(made)
    return made


def load() -> tuple[Any, Any, Any]:
    """The mixin, the tests of executors, those of reusable ones. Raises ImportError without them."""
    given = os.environ.get("LOKY_TESTS")
    if given is None:
        raise ImportError("LOKY_TESTS is not set")
    folder = Path(tempfile.mkdtemp(prefix="prefork-loky-"))
    (folder / PACKAGE).mkdir()
    for name in _MODULES:
        text = (Path(given) / "tests" / f"{name}.py").read_text()
        for before, after in _OTHERWISE:
            text = text.replace(before, after)
        (folder / PACKAGE / f"{name}.py").write_text(text)
    (folder / "loky").symlink_to(Path(given) / "loky")  # its own folder has a package `tests` too
    paths = [str(ROOT), str(folder)]
    sys.path += paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    mixin, executors, reusable = (importlib.import_module(f"{PACKAGE}.{name}") for name in _MODULES[2:])
    new: dict[str, Any] = {
        "TerminatedWorkerError": WorkerDied,
        "ShutdownExecutorError": (RuntimeError, Stopped),
        "filter_match": _translate,
        "get_reusable_executor": get_reusable_executor,
    }
    for module in (mixin, executors, reusable):
        vars(module).update({name: value for name, value in new.items() if name in vars(module)})
    vars(executors.process_executor)["_RemoteTraceback"] = vars(reusable)["_RemoteTraceback"] = RemoteTraceback
    vars(mixin)["_running_children_pids_with_cmdline"] = _list_ours
    # That no process is left is looked at after each test.
    vars(mixin)["_check_subprocesses_number"] = lambda *_, **__: None
    return mixin, executors, reusable
