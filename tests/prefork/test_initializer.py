"""What each worker does first, and how much it does before another takes its place."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from prefork import HangLimit, InitializerError, Runtime, RuntimeState

pytestmark = pytest.mark.usefixtures("script_engine")


@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_every_worker_is_initialized_and_replaced_after_so_many_calls(strategy: str) -> None:
    import script_calls as calls

    settings: dict[str, Any] = {"strategy": strategy, "initializer": calls.keep, "initargs": (1, "two")}
    with Runtime(workers=2, **settings, max_tasks_per_child=3, notice=pytest.fail) as runtime:
        found = [future.result(timeout=60) for future in [runtime.submit(calls.look) for _ in range(12)]]
    assert {kept for _, kept in found} == {(1, "two")}
    assert max(Counter(pid for pid, _ in found).values()) == 3, "short calls that are given ahead count too"


def test_an_initializer_gets_the_model_as_functions_do() -> None:
    import script_calls as calls

    with Runtime(load=calls.load_narrow, workers=1, initializer=calls.keep, initargs=(7,)) as runtime:
        assert runtime.submit(calls.look_beside_model).result() == (True, [7])


@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_an_initializer_that_raises_ends_the_block_before_it_begins(strategy: str) -> None:
    import script_calls as calls

    with (
        pytest.raises(InitializerError, match="initializer of the workers raised ConnectionError: the database") as e,
        Runtime(workers=2, strategy=strategy, initializer=calls.raise_at_once) as runtime,
    ):
        pytest.fail("the block must not begin")
    assert isinstance(e.value, BrokenProcessPool) and isinstance(e.value.__cause__, ConnectionError)
    assert "script_calls.py" in str(e.value.__cause__.__cause__)
    runtime = Runtime(workers=2, strategy=strategy, initializer=calls.raise_at_once)
    futures = [runtime.submit(abs, -1) for _ in range(3)]
    assert {type(future.exception(timeout=60)) for future in futures} == {InitializerError}
    assert runtime.status().state is RuntimeState.FAILED and isinstance(runtime.status().failure, InitializerError)


def test_an_initializer_that_hangs_ends_it_too_at_the_hang_limit() -> None:
    import script_calls as calls

    message = "its initializer had not returned after 1 s, and it was killed; a longer hang limit allows it more"
    with (
        pytest.raises(InitializerError, match=message),
        Runtime(workers=2, initializer=calls.sleep_for_ever, hang_limit=HangLimit(1.0)),
    ):
        pytest.fail("the block must not begin")


def test_an_initializer_that_fails_once_later_costs_one_worker(tmp_path: Path) -> None:
    import script_calls as calls

    notices: list[str] = []
    settings: dict[str, Any] = {"initializer": calls.raise_after_first, "initargs": (str(tmp_path / "starts"),)}
    with Runtime(workers=1, **settings, max_tasks_per_child=1, notice=notices.append) as runtime:
        pids = [runtime.submit(calls.get_pid).result(timeout=60) for _ in range(3)]
    assert len(set(pids)) == 3 and notices == []
    assert runtime.status().deaths == 1


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        ({"initializer": 3}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, ValueError),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(argument: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=next(iter(argument))):
        Runtime(**argument)


def test_a_worker_that_is_replaced_after_each_call_loses_none() -> None:
    import script_calls as calls

    with Runtime(workers=2, max_tasks_per_child=1, notice=pytest.fail) as runtime:
        began = time.monotonic()
        pids = list(runtime.map(calls.get_pid, range(20)))
    assert len(set(pids)) == 20, f"{time.monotonic() - began} s"
