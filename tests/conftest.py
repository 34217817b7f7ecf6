"""What the tests share: where the data is, and no process left behind by any of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest

from tests import systems
from tests.environment import FOR_THREADS
from tests.prefork.command import wait_until_gone
from tests.systems.lacks import find_lack
from tests.turns import take_turn

if sys.platform == "linux":  # what it needs, no other system has
    from tests import launcher

    # As another system has it: PREFORK_TESTS_SYSTEM=darwin python -m pytest -n 0 tests/engines
    if system := os.environ.get(systems.SYSTEM):
        systems.become(system, "tests")

# Who starts the suite in the background has it ignore SIGINT, which tests send, and which is passed on by exec.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The suite is the same whatever variables for threads whoever starts it has set, and what it starts is forked.
for name in filter(FOR_THREADS.match, list(os.environ)):
    del os.environ[name]
SCRIPT_ENGINE = Path(__file__).parent / "data" / "script_engine"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Recordings and models that are no part of the repository; tests that need them skip without."""
    path = Path(__file__).resolve().parents[1].parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder ../shared with recordings, which is no part of the repository")
    return path


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured here is nobody else's business, and what was measured elsewhere none of ours. No test gets the
    results of another, unless it asks for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFORK_CACHE", "off")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _launcher(_cache: None) -> Iterator[None]:
    """Starts what prefork starts; see there."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            launcher.Popen.before = dict(os.environ)  # with what the modules of tests have set as they were imported
            patch.setattr(subprocess, "Popen", launcher.Popen)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs in two processes, if pytest-xdist is there and nobody says otherwise (-n, --pdb)."""
    option = config.option
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS and "PYTEST_XDIST_WORKER" not in os.environ
    if whole and getattr(option, "numprocesses", 0) is None and not (option.usepdb or option.collectonly):
        option.numprocesses, option.dist, option.loadscopereorder = 2, "loadscope", False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that exec what they start take longest: they come first, so that both processes end together. What is
    exec'ed is not made another system."""
    if os.environ.get(systems.SYSTEM):
        for item in items:
            if item.get_closest_marker("exec"):
                item.add_marker(pytest.mark.skip(reason="what it starts is exec'ed, and finds Linux"))
    longest = {item.module for item in items if isinstance(item, pytest.Function) and item.get_closest_marker("exec")}
    items.sort(key=lambda item: not (isinstance(item, pytest.Function) and item.module in longest))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skips a module that cannot be imported where its system's names are missing; see tests.systems.lacks."""
    report = yield
    call = getattr(report, "call", None)
    error = call.excinfo.value if call is not None and call.excinfo is not None else None
    if error is not None and (lack := find_lack(error.__cause__ or error)):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 1, lack)
    return report


def _skip_for_lack() -> Generator[None, object, object]:
    """The same of what runs at its `yield`."""
    try:
        return (yield)
    except Exception as error:
        if lack := find_lack(error):
            pytest.skip(lack)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    return (yield from _skip_for_lack())


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Generator[None, object, object]:
    return (yield from _skip_for_lack())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if sys.platform == "linux":
        launcher.forget_what_libraries_set()
        launcher.Popen.is_off = item.get_closest_marker("exec") is not None
    with take_turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture
def script_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's engine is installed: its folder is where Python looks for packages."""
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{SCRIPT_ENGINE}{os.pathsep}{known}" if known else str(SCRIPT_ENGINE))
    monkeypatch.syspath_prepend(str(SCRIPT_ENGINE))


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """Those that were there before are a fixture's of the whole module."""
    before = _list_ours()
    yield
    assert not wait_until_gone(sorted(_list_ours() - before), 3)


def _list_ours() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if _is_ours(child)}


def _is_ours(process: psutil.Process) -> bool:
    try:
        return "from prefork." in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it ended while we looked
        return False
