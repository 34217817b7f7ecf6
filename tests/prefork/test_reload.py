"""Other weights for a Runtime that runs: no call is lost, and bad ones change nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prefork import LoadError, Runtime, Stopped, WorkerDied

pytestmark = pytest.mark.usefixtures("script_engine")
_STRATEGIES = ["fork", "spawn"]


def _wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("strategy", _STRATEGIES)
def test_calls_go_on_while_other_weights_are_loaded_and_then_get_those(strategy: str, tmp_path: Path) -> None:
    import script_calls as calls

    log = tmp_path / "log"
    with Runtime(load=partial(calls.load_filled, 1.0), workers=2, strategy=strategy, notice=pytest.fail) as runtime:
        once = runtime.with_options(retry=False)
        assert once.submit(calls.score).result() == 4.0
        running = once.submit(calls.note_score, str(log), 1.0)
        _wait_until(log.exists)
        results: list[float] = []
        stopped = threading.Event()

        def submit() -> None:
            while not stopped.is_set():
                results.append(once.submit(calls.score).result(timeout=120))

        thread = threading.Thread(target=submit)
        thread.start()
        before = runtime.submit(calls.find_parent).result()
        runtime.reload(partial(calls.load_filled, 2.0))
        assert [once.submit(calls.score).result() for _ in range(20)] == [8.0] * 20
        stopped.set()
        thread.join()
        assert running.result() == 4.0, "it had begun on the old weights, and ends on them"
        assert set(results) <= {4.0, 8.0} and results == sorted(results)
        assert runtime.status().reloads == 1 and runtime.status().deaths == 0
        if strategy == "fork":
            assert runtime.submit(calls.find_parent).result() != before
            _wait_until(lambda: len(runtime.supervisor.list_pids()) == 3)  # the old zygote has gone
            assert 4.0 in results, "nobody waited"


@pytest.mark.parametrize("strategy", _STRATEGIES)
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (
            "load_wide",
            r"the tensor weight is \(1, 8\) float32, and was \(1, 4\) float32; reload takes other weights of",
        ),
        ("load_without_bias", r"the tensor bias is not there, and was \(1,\) float32"),
        ("load_none", "the disk with the weights is gone"),
        ("exit_at_once", "exited with status 3"),
    ],
)
def test_weights_that_cannot_be_used_change_nothing(strategy: str, bad: str, reason: str) -> None:
    import script_calls as calls

    silent: dict[str, Any] = {"notice": lambda _: None, "log": lambda _: None}
    with Runtime(load=partial(calls.load_filled, 1.0), workers=1, strategy=strategy, **silent) as runtime:
        with pytest.raises(LoadError, match=f"the new weights cannot be used, and the old ones are: .*{reason}"):
            runtime.reload(getattr(calls, bad))
        assert runtime.submit(calls.score).result(timeout=120) == 4.0
        assert runtime.status().reloads == 0
        runtime.reload(partial(calls.load_filled, 3.0))
        assert runtime.submit(calls.score).result(timeout=120) == 12.0


@pytest.mark.parametrize("strategy", _STRATEGIES)
def test_a_model_is_walked_through_once(strategy: str, tmp_path: Path) -> None:
    """It takes 35 ms for 1,600 tensors, of every start."""
    log = tmp_path / "walks"

    def load() -> Any:
        import torch

        from prefork.weights import walk

        visit = walk.visit

        def count(root: Any) -> Any:
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
            return visit(root)

        walk.visit = count
        return torch.nn.Linear(4, 1)

    with Runtime(load=load, workers=1, strategy=strategy) as runtime:
        assert runtime.submit(lambda model: model.weight.numel()).result() == 4
    walks = log.read_text().split()
    assert walks and len(walks) == len(set(walks))


def test_files_that_have_changed_are_read_again(tmp_path: Path) -> None:
    import script_calls as calls

    file = tmp_path / "value"
    file.write_text("1.0")
    with Runtime(load={"a": partial(calls.load_from, str(file))}, workers=1) as runtime:
        file.write_text("5.0")
        assert runtime.with_options(model="a").submit(calls.score).result() == 4.0
        runtime.reload()
        assert runtime.with_options(model="a").submit(calls.score).result() == 20.0
        with pytest.raises(ValueError, match=r"reload takes models of the same names: \('a',\), not \('b',\)"):
            runtime.reload({"b": calls.load_narrow})


def test_a_zygote_that_is_killed_during_a_reload_costs_neither_weights_nor_calls(tmp_path: Path) -> None:
    import script_calls as calls

    marker = tmp_path / "loading"
    with Runtime(load=partial(calls.load_filled, 1.0), workers=2, notice=lambda _: None) as runtime:
        zygote = runtime.supervisor.zygote_pid()
        assert zygote is not None
        errors: list[BaseException] = []

        def reload() -> None:
            try:
                runtime.reload(partial(calls.load_slowly, 2.0, str(marker), 2.0))
            except LoadError as error:
                errors.append(error)

        for victim in ("old", "new"):
            thread = threading.Thread(target=reload)
            thread.start()
            _wait_until(marker.exists)
            marker.unlink()
            if victim == "old":
                os.kill(zygote, signal.SIGKILL)
            else:
                (new,) = {
                    name: pid for name, pid in runtime.supervisor.list_pids().items() if name == "zygote 2"
                }.values()
                os.kill(new, signal.SIGKILL)
            assert runtime.submit(calls.score).result(timeout=120) in (4.0, 8.0)
            thread.join()
        (error,) = errors
        assert "the zygote that loads them was killed by SIGKILL" in str(error)
        assert runtime.submit(calls.score).result(timeout=120) == 8.0


def test_an_old_zygote_that_is_killed_takes_its_last_call_with_it_alone(tmp_path: Path) -> None:
    import script_calls as calls

    log = tmp_path / "log"
    with Runtime(load=partial(calls.load_filled, 1.0), workers=2, notice=lambda _: None) as runtime:
        old = runtime.supervisor.zygote_pid()
        assert old is not None
        last = runtime.with_options(retry=False).submit(calls.note_score, str(log), 3600.0)
        _wait_until(log.exists)
        runtime.reload(partial(calls.load_filled, 2.0))
        os.kill(old, signal.SIGKILL)
        assert isinstance(last.exception(timeout=60), WorkerDied)
        assert runtime.submit(calls.score).result() == 8.0


def test_one_reload_at_a_time_and_none_without_load_or_after_the_end() -> None:
    import script_calls as calls

    async def main() -> None:
        async with Runtime(load=partial(calls.load_filled, 1.0), workers=1) as runtime:
            first = asyncio.create_task(runtime.areload(partial(calls.load_filled, 2.0)))
            await asyncio.sleep(0.1)
            with pytest.raises(LoadError, match="being reloaded already"):
                await runtime.areload()
            await first
            assert await runtime.asubmit(calls.score) == 8.0
        with pytest.raises(RuntimeError, match="cannot reload after shutdown"):
            runtime.reload()

    asyncio.run(main())
    with Runtime(workers=1) as runtime, pytest.raises(ValueError, match="this Runtime has no load"):
        runtime.reload()


def test_a_runtime_that_ends_during_a_reload_ends_that_too() -> None:
    import script_calls as calls

    errors: list[BaseException] = []
    with Runtime(load=partial(calls.load_filled, 1.0), workers=1) as runtime:

        def reload() -> None:
            try:
                runtime.reload(partial(calls.load_slowly, 2.0, os.devnull, 60.0))
            except Stopped as error:
                errors.append(error)

        thread = threading.Thread(target=reload)
        thread.start()
        _wait_until(lambda: "zygote 1" in runtime.supervisor.list_pids())
    thread.join(60)
    assert len(errors) == 1


def test_after_weights_that_were_not_loaded_in_time_others_can_be_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import script_calls as calls

    with Runtime(load=partial(calls.load_filled, 1.0), workers=1, notice=pytest.fail) as runtime:
        with monkeypatch.context() as patch, pytest.raises(LoadError, match="they were not loaded within 1 s"):
            patch.setattr("prefork.pool.tasks._LOADING", 1 / 60)
            runtime.reload(partial(calls.load_slowly, 2.0, os.devnull, 3600.0))
        runtime.reload(partial(calls.load_filled, 2.0))  # while the zygote that was too slow is about to end
        assert runtime.submit(calls.score).result() == 8.0
        _wait_until(lambda: len(runtime.supervisor.list_pids()) == 2)


def test_a_call_that_does_not_end_keeps_the_others_waiting_no_longer_than_loading_may_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the weights cannot be loaded beside those that it has."""
    import script_calls as calls

    log = tmp_path / "log"
    with Runtime(load=partial(calls.load_filled, 1.0), workers=2, strategy="spawn", notice=pytest.fail) as runtime:
        assert runtime.submit(calls.score).result() == 4.0
        endless = runtime.submit(calls.note_score, str(log), 3600.0)
        _wait_until(log.exists)
        with monkeypatch.context() as patch:
            patch.setattr("prefork.pool.tasks._LOADING", 3 / 60)
            reason = r"and the old ones are: calls that have them had not ended after 3 s \(worker \d at .*note_score"
            with pytest.raises(LoadError, match=reason):
                runtime.reload(partial(calls.load_filled, 2.0))
        assert runtime.submit(calls.score).result(timeout=60) == 4.0
        assert not endless.done() and runtime.status().deaths == 0
        assert runtime.cancel(endless)
        runtime.reload(partial(calls.load_filled, 2.0))
        assert runtime.submit(calls.score).result(timeout=60) == 8.0
