"""What a program may want of a call beyond that it is done: a limit, no second try, its turn, an end while it runs."""

from __future__ import annotations

import math
import os
import signal
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from prefork import CallTimedOut, OutOfMemory, Runtime, WorkerDied
from prefork.platform_matrix.systems import SYSTEM

pytestmark = pytest.mark.usefixtures("script_engine")
_STRATEGIES = ["fork", "spawn"]


def _wait_until(holds: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("strategy", _STRATEGIES)
def test_a_call_is_ended_at_its_timeout_and_what_it_holds_is_released(strategy: str, tmp_path: Path) -> None:
    import script_calls as calls

    lock = str(tmp_path / "lock")
    with Runtime(workers=1, strategy=strategy, notice=pytest.fail) as runtime:
        before = runtime.submit(calls.get_pid).result()
        limited = runtime.with_options(timeout=0.5)
        with pytest.raises(CallTimedOut, match=r"hold was ended, because it had not ended after 0\.5 s") as caught:
            limited.submit(calls.hold, lock, 3600).result(timeout=60)
        assert isinstance(caught.value, TimeoutError) and isinstance(caught.value.__cause__, KeyboardInterrupt)
        assert "script_calls.py" in str(caught.value.__cause__.__cause__)
        assert not Path(lock).exists()
        assert limited.submit(calls.hold, lock, 0.0).result(timeout=60) != before, "half of a call may be left there"
        assert runtime.status().deaths == 0


def test_a_call_that_ignores_its_end_is_ended_with_its_worker_and_no_other_call_is(tmp_path: Path) -> None:
    import script_calls as calls

    with Runtime(workers=2, notice=pytest.fail) as runtime:
        began = time.monotonic()
        stubborn = runtime.with_options(timeout=0.2).submit(calls.ignore_interruptions, str(tmp_path / "began"), 60)
        others = [runtime.submit(abs, -number) for number in range(500)]
        assert [future.result() for future in others] == list(range(500))
        assert isinstance(stubborn.exception(timeout=60), CallTimedOut)
        assert 2.0 < time.monotonic() - began < 40


def test_where_no_process_can_be_interrupted_its_worker_is_killed_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on Windows."""
    import script_calls as calls

    monkeypatch.setattr(SYSTEM, "interruption", None)
    with Runtime(workers=1, notice=pytest.fail) as runtime:
        lock = str(tmp_path / "lock")
        assert isinstance(runtime.with_options(timeout=0.5).submit(calls.hold, lock, 3600).exception(60), CallTimedOut)
        assert Path(lock).exists()
        assert runtime.submit(abs, -1).result(timeout=60) == 1
        assert runtime.status().deaths == 0


def test_the_time_that_a_call_waits_does_not_count() -> None:
    with Runtime(workers=1) as runtime:
        limited = runtime.with_options(timeout=1.5)
        assert [future.result() for future in [limited.submit(time.sleep, 0.5) for _ in range(6)]] == [None] * 6


def test_many_short_calls_are_fast_with_a_timeout_too() -> None:
    with Runtime(workers=2) as runtime:
        assert list(runtime.with_options(timeout=60).map(abs, range(-3000, 0))) == list(range(3000, 0, -1))


@pytest.mark.parametrize("end", ["die", "starve", "zygote"])
def test_a_call_that_must_not_run_twice_does_not_whatever_ends_it(end: str, tmp_path: Path) -> None:
    import script_calls as calls

    log = tmp_path / "log"
    with Runtime(workers=1, notice=lambda _: None) as runtime:
        once = runtime.with_options(retry=False)
        if end == "zygote":
            future: Future[Any] = once.submit(calls.note, str(log), "ran", 3600)
            waiting = [once.submit(calls.note, str(log), "waited") for _ in range(3)]
            _wait_until(log.exists)
            zygote = runtime.supervisor.zygote_pid()
            assert zygote is not None
            os.kill(zygote, signal.SIGKILL)
            assert [other.result(timeout=60) for other in waiting] == ["waited"] * 3
        else:
            future = once.submit(calls.note_and_die if end == "die" else calls.note_and_starve, str(log))
        error = future.exception(timeout=60)
        assert isinstance(error, OutOfMemory if end == "starve" else WorkerDied)
        assert "not tried again (retry=False)" in str(error)
        assert log.read_text().splitlines().count("ran") == 1
        assert runtime.submit(abs, -1).result() == 1


def test_calls_of_a_higher_priority_begin_first_and_others_in_their_order(tmp_path: Path) -> None:
    import script_calls as calls

    log = tmp_path / "log"
    with Runtime(workers=1) as runtime:
        blocker = runtime.submit(time.sleep, 0.5)
        _wait_until(blocker.running)
        for priority in (0, -1, 5, 0, 5, 1):
            submitter = runtime.with_options(priority=priority)
            for place in range(2):
                submitter.submit(calls.note, str(log), f"{priority}.{place}", 0.02)
    assert log.read_text().split() == [
        *("5.0", "5.1", "5.0", "5.1", "1.0", "1.1", "0.0", "0.1", "0.0", "0.1", "-1.0", "-1.1")
    ]


@pytest.mark.parametrize("strategy", _STRATEGIES)
def test_a_call_that_runs_can_be_cancelled_and_releases_its_lock(strategy: str, tmp_path: Path) -> None:
    import script_calls as calls

    lock = tmp_path / "lock"
    with Runtime(workers=1, strategy=strategy, notice=pytest.fail) as runtime:
        running = runtime.submit(calls.hold, str(lock), 3600)
        waiting = [runtime.submit(abs, -number) for number in range(50)]
        _wait_until(lock.exists)
        assert not running.cancel(), "as in the standard library"
        assert runtime.cancel(running) and running.cancelled()
        with pytest.raises(CancelledError):
            running.result()
        assert wait([running], timeout=60).done == {running}
        assert [future.result(timeout=60) for future in waiting] == list(range(50))
        assert not lock.exists()
        assert not runtime.cancel(waiting[0]), "it is done"
        assert runtime.submit(calls.hold, str(lock), 0.0).result() > 0
        assert runtime.status().deaths == 0


def test_calls_that_are_cancelled_at_any_moment_cost_no_other(tmp_path: Path) -> None:
    """Among calls that take next to no time, so that many end, and the next begin, as they are cancelled."""
    import script_calls as calls

    log = tmp_path / "log"
    with Runtime(workers=2, notice=pytest.fail) as runtime:
        once = runtime.with_options(retry=False)
        futures = [once.submit(calls.note, str(log), str(number)) for number in range(600)]
        with ThreadPoolExecutor(2) as canceller:
            cancelled = list(canceller.map(runtime.cancel, futures[::7]))
        done = [future for number, future in enumerate(futures) if number % 7]
        assert all(isinstance(future.result(timeout=60), str) for future in done)
        assert [future.cancelled() for future in futures[::7]] == cancelled
    ran = log.read_text().split()
    assert len(ran) == len(set(ran)) and {str(number) for number in range(600) if number % 7} <= set(ran)


def test_a_call_that_is_cancelled_as_it_begins_is_interrupted_too() -> None:
    """Its worker may not have come to it yet: to kill it for that would take 2 s each time."""
    with Runtime(workers=1, notice=pytest.fail) as runtime:
        began = time.monotonic()
        for _ in range(12):
            future = runtime.submit(time.sleep, 3600)
            _wait_until(future.running)
            assert runtime.cancel(future)
        assert runtime.submit(abs, -1).result(timeout=60) == 1
        assert time.monotonic() - began < 20


def test_only_a_runtime_s_own_futures_are_cancelled() -> None:
    with Runtime(workers=1) as runtime, Runtime(workers=1) as other:
        for foreign in (Future[None](), other.submit(time.sleep, 0.5)):
            with pytest.raises(ValueError, match="not of a call that this Runtime was given"):
                runtime.cancel(foreign)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be a number of seconds above 0, or None for no limit, not 0"),
        ({"timeout": -1.0}, "not -1.0"),
        ({"timeout": math.nan}, "not nan"),
        ({"timeout": math.inf}, "not inf"),
        ({"timeout": 10**400}, "not 10{400}"),  # no float is as large
        ({"timeout": "5"}, "not '5'"),
        ({"timeout": True}, "not True"),
        ({"retry": 2}, "retry must be True or False, not 2"),
        ({"priority": 0.5}, "priority must be a whole number, higher ones first, not 0.5"),
        ({"on_progress": "print"}, "on_progress must be a function of what is reported, not 'print'"),
        ({"model": "large"}, r"model='large': this Runtime has no models by name; load=\{'large': ...\} gives it one"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with Runtime(workers=1) as runtime, pytest.raises((ValueError, TypeError), match=message):
        runtime.with_options(**options)


def test_options_add_up_and_their_executor_ends_nothing() -> None:
    with Runtime(workers=1) as runtime:
        first = runtime.with_options(timeout=0.3, retry=False)
        with first.with_options(priority=3) as second:
            assert isinstance(second.submit(time.sleep, 3600).exception(timeout=60), CallTimedOut)
        assert runtime.submit(abs, -1).result() == 1
        assert second.with_options(timeout=None).submit(time.sleep, 1.0).result() is None
        with pytest.raises(TypeError, match="map takes a function, and list is none"):
            first.map([])  # type: ignore[arg-type]


def test_one_of_several_models_is_chosen_by_its_name() -> None:
    import script_calls as calls

    with Runtime(load={"narrow": calls.load_narrow, "wide": calls.load_wide}, workers=2) as runtime:
        narrow, wide = runtime.with_options(model="narrow"), runtime.with_options(model="wide")
        assert narrow.submit(calls.find_shape).result() == (2, 4)
        assert list(wide.map(calls.get_pid, range(3), chunksize=2))
        assert wide.submit(calls.find_shape).result() == (1, 8)
        assert runtime.submit(calls.find_shapes).result() == {"narrow": (2, 4), "wide": (1, 8)}
        with pytest.raises(ValueError, match="there is no model 'wid', but 'narrow', 'wide'; did you mean 'wide'"):
            runtime.with_options(model="wid")


def test_a_model_of_several_that_cannot_be_loaded_is_named() -> None:
    import script_calls as calls

    from prefork import LoadError

    with (
        pytest.raises(LoadError, match="the disk with the weights is gone; it is the model 'gone'"),
        Runtime(load={"narrow": calls.load_narrow, "gone": calls.load_none}, log=lambda _: None),
    ):
        pytest.fail("the block must not begin")


@pytest.mark.parametrize("load", [{}, {"a": 3}, {3: abs}, 3])
def test_what_loads_nothing_is_refused(load: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="load must be a function without arguments, or a mapping of"):
        Runtime(load=load)
