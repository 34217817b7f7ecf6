"""What calls give while they run: what they yield, and what they report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from prefork import CallTimedOut, Job, Runtime, WorkerDied, report_progress
from prefork.wire.calls import MOST_YIELDED

pytestmark = pytest.mark.usefixtures("script_engine")


@pytest.fixture
def runtime(script_engine: None) -> Iterator[Runtime]:
    with Runtime(workers=2, notice=lambda _: None) as runtime:
        yield runtime


def _wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_a_generator_yields_comes_in_its_order_and_while_it_runs(runtime: Runtime) -> None:
    import script_calls as calls

    stream = runtime.stream(calls.count, 200)
    assert list(stream) == list(range(200))
    assert list(stream) == [], "it is over"
    slow = runtime.stream(calls.count, 2, pause=1.0)
    began = time.monotonic()
    assert next(slow) == 0 and time.monotonic() - began < 1.9
    assert list(slow) == [1]
    assert list(runtime.stream(range, 5)) == [0, 1, 2, 3, 4], "anything that can be iterated over"


@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_large_arrays_go_their_way_as_results_do(strategy: str) -> None:
    import script_calls as calls

    with Runtime(workers=1, strategy=strategy) as runtime:
        for number, array in enumerate(runtime.stream(calls.give_arrays, 50, 100_000)):
            assert array.shape == (100_000,) and np.all(array == number)


def test_a_generator_waits_for_who_takes_what_it_yields(runtime: Runtime, tmp_path: Path) -> None:
    import script_calls as calls

    log = tmp_path / "log"
    stream = runtime.stream(calls.count, 1000, str(log))
    assert next(stream) == 0
    _wait_until(lambda: log.exists() and len(log.read_text().split()) >= MOST_YIELDED)
    time.sleep(0.3)
    assert len(log.read_text().split()) <= 2 * MOST_YIELDED
    assert list(stream) == list(range(1, 1000))


@pytest.mark.parametrize("how", ["closed", "dropped", "never begun"])
def test_a_stream_that_nobody_takes_any_more_ends_its_call(how: str, tmp_path: Path) -> None:
    import script_calls as calls

    log = tmp_path / "log"
    with Runtime(workers=1, notice=pytest.fail) as runtime:
        stream = runtime.stream(calls.count, 10**9, str(log))
        if how != "never begun":
            assert next(stream) == 0
        _wait_until(log.exists)
        if how == "closed":
            stream.close()  # type: ignore[attr-defined]
            assert list(stream) == []
        del stream
        assert runtime.submit(abs, -1).result(timeout=60) == 1
        assert runtime.status().deaths == 0


def test_what_a_generator_raises_comes_after_what_it_has_yielded(runtime: Runtime) -> None:
    import script_calls as calls

    stream = runtime.stream(calls.count_and_fail, 3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="nothing is left"):
        next(stream)
    stream = runtime.stream(calls.give_bad)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="it cannot be made here"):
        next(stream)
    with pytest.raises(TypeError, match="not iterable"):
        next(runtime.stream(abs, -1))


def test_a_stream_whose_worker_dies_is_not_begun_again(runtime: Runtime) -> None:
    import script_calls as calls

    stream = runtime.stream(calls.count_and_die, 5)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(WorkerDied, match="not tried again"):
        next(stream)


def test_a_stream_has_a_timeout_from_its_beginning_to_its_end(runtime: Runtime) -> None:
    import script_calls as calls

    stream = runtime.with_options(timeout=1.0).stream(calls.count, 10**9, pause=0.1)
    with pytest.raises(CallTimedOut):
        assert len(list(stream)) < 20


def test_streams_and_short_calls_do_not_hold_up_each_other(runtime: Runtime) -> None:
    import script_calls as calls

    stream = runtime.stream(calls.count, 50, pause=0.02)
    assert list(runtime.map(abs, range(-2000, 0))) == list(range(2000, 0, -1))
    assert list(stream) == list(range(50))


def test_a_call_reports_its_progress_to_who_listens(runtime: Runtime) -> None:
    import script_calls as calls

    heard: list[tuple[int, int]] = []
    assert runtime.with_options(on_progress=heard.append).submit(calls.report, 5).result() == "done"
    assert [step for step, _ in heard] == [0, 1, 2, 3, 4]
    assert runtime.submit(calls.report, 5).result() == "done", "and costs nothing where nobody does"
    report_progress("nor outside of a call")
    assert len(heard) == 5


def test_jobs_tell_the_seconds_that_are_worked_off(script_engine: None, tmp_path: Path) -> None:
    jobs = []
    for number in range(3):
        source = tmp_path / f"job{number}"
        source.write_text("\n".join(["say x"] * 40))
        jobs.append(Job(source.name, source, seconds=40.0))
    heard: list[float] = []

    def listen(seconds: float) -> None:
        heard.append(seconds)
        raise ValueError("a bug in the bar")

    with Runtime("script", workers=2) as runtime:
        assert [result.error for result in runtime.map(jobs, on_progress=listen)] == [None] * 3
    assert sum(heard) == pytest.approx(120.0) and len(heard) > 3


def test_a_listener_that_fails_costs_the_call_nothing(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    import script_calls as calls

    def fail(_: object) -> None:
        raise ValueError("a bug in the bar")

    assert runtime.with_options(on_progress=fail).submit(calls.report, 3).result() == "done"
    assert caplog.text.count("report: on_progress has failed") == 3
    error = runtime.with_options(on_progress=print).submit(calls.report_unpicklable).exception(timeout=60)
    assert isinstance(error, TypeError) and "cannot pickle" in str(error)
