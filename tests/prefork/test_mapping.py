"""`Runtime.map`: what ProcessPoolExecutor's does, and iterables without an end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork import Runtime
from prefork.pool.mapping import WINDOW

pytestmark = pytest.mark.usefixtures("script_engine")


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(workers=2, notice=lambda _: None) as found:
        yield found


def _wait_for(path: Path, size: int) -> int:
    until = time.monotonic() + 60
    while path.stat().st_size < size and time.monotonic() < until:
        time.sleep(0.05)
    return path.stat().st_size


@pytest.mark.parametrize("options", [{}, {"chunksize": 3}, {"buffersize": 2}, {"chunksize": 3, "buffersize": 1}])
@pytest.mark.parametrize("has_length", [True, False])
def test_results_come_in_order(runtime: Runtime, options: dict[str, int], has_length: bool) -> None:
    import script_futures

    numbers: Any = range(10) if has_length else iter(range(10))
    assert list(runtime.map(script_futures.square, numbers, **options)) == [n * n for n in range(10)]
    assert list(runtime.map(pow, numbers if has_length else iter(range(10)), [2] * 4, **options)) == [0, 1, 4, 9]


def test_sizes_are_checked(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        runtime.map(abs, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize must be None or > 0"):
        runtime.map(abs, [1], buffersize=0)
    for wrong in ("2", 2.0):
        with pytest.raises(TypeError, match="buffersize must be an integer or None"):
            runtime.map(abs, [1], buffersize=wrong)  # type: ignore[call-overload]


def test_a_chunk_is_one_call_with_the_model() -> None:
    with Runtime(load=lambda: 10, workers=1, notice=lambda _: None) as runtime:
        assert list(runtime.map(lambda model, n: model + n, range(5), chunksize=2)) == [10, 11, 12, 13, 14]


def test_of_what_has_no_end_a_window_is_taken(runtime: Runtime) -> None:
    import script_futures

    taken = itertools.count()
    results = runtime.map(script_futures.square, taken)
    assert list(itertools.islice(results, 2000)) == [n * n for n in range(2000)]
    assert next(taken) <= 2000 + WINDOW + 1
    results.close()  # type: ignore[attr-defined]
    assert runtime.submit(abs, -1).result(timeout=60) == 1


def test_with_a_buffer_no_more_is_taken_than_it_holds(runtime: Runtime) -> None:
    taken = itertools.count()
    results = runtime.map(abs, taken, buffersize=3)
    assert next(taken) == 3
    assert next(results) == 0 and next(taken) == 5


def test_what_nobody_consumes_is_done_all_the_same(runtime: Runtime, tmp_path: Path) -> None:
    import script_futures

    path = tmp_path / "made"
    path.touch()
    runtime.map(script_futures.append, (path for _ in range(WINDOW + 500)))
    assert _wait_for(path, WINDOW + 500) == WINDOW + 500


def test_after_a_shutdown_the_rest_is_there() -> None:
    import script_futures

    runtime = Runtime(workers=2, notice=lambda _: None)
    numbers = range(WINDOW + 500)
    results = runtime.map(script_futures.square, iter(numbers))
    assert next(results) == 0
    runtime.shutdown()
    assert list(results) == [n * n for n in numbers[1:]]


def test_what_the_iterable_raises_comes_after_the_results_before_it(runtime: Runtime) -> None:
    def produce() -> Iterator[int]:
        yield from range(WINDOW + 10)
        raise LookupError("no more")

    results = runtime.map(abs, produce())
    assert list(itertools.islice(results, WINDOW + 10)) == list(range(WINDOW + 10))
    with pytest.raises(LookupError, match="no more"):
        next(results)
