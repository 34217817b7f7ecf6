"""`Runtime` as an executor: futures end, whatever user code raises, and what was submitted is done."""

from __future__ import annotations

import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, CancelledError, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prefork import Runtime, WorkerDied
from tests.prefork.command import wait_until_gone

pytestmark = pytest.mark.usefixtures("script_engine")


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "ValueError"])
@pytest.mark.parametrize("where", ["result", "exception"])
def test_what_raises_as_it_is_unpickled_costs_its_own_call(kind: str, where: str) -> None:
    import script_futures

    with Runtime(workers=1, notice=lambda _: None) as runtime:
        future = runtime.submit(getattr(script_futures, f"make_bad_{where}"), kind)
        error = future.exception(timeout=60)
        assert type(error).__name__ == ("BadError" if where == "exception" else kind)
        assert runtime.submit(abs, -3).result(timeout=60) == 3


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, CancelledError, ValueError])
@pytest.mark.parametrize("how", ["submit", "map", "endless"])
def test_what_raises_as_it_is_pickled_costs_its_own_call(kind: type[BaseException], how: str) -> None:
    import script_futures

    bad = script_futures.BadArgument(kind("as it is pickled"))
    with Runtime(workers=1, notice=lambda _: None) as runtime:
        if how == "submit":
            error = runtime.submit(repr, bad).exception(timeout=60)
            assert type(error) is kind and str(error) == "as it is pickled"
        else:
            given = [1, bad, 2]
            results = runtime.map(repr, given if how == "map" else iter(given), timeout=60)
            assert next(results) == "1"
            with pytest.raises(kind, match="as it is pickled"):
                next(results)
        assert runtime.submit(abs, -3).result(timeout=60) == 3


def test_what_exits_as_it_is_pickled_in_a_thread_is_its_call_s_error_too() -> None:
    import script_futures

    found: list[BaseException | None] = []

    def submit() -> None:
        found.append(runtime.submit(repr, script_futures.BadArgument(SystemExit(3))).exception(timeout=60))

    with Runtime(workers=1, notice=lambda _: None) as runtime:
        thread = threading.Thread(target=submit)
        thread.start()
        thread.join(60)
    assert isinstance(found[0], SystemExit) and found[0].code == 3


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_while_something_is_pickled_interrupts_who_submits(number: int, kind: type[BaseException]) -> None:
    import script_futures

    def end(number: int, _: object) -> None:
        raise kind(number)

    before = signal.signal(number, end)
    try:
        with Runtime(workers=1, notice=lambda _: None) as runtime:
            with pytest.raises(kind, match=str(int(number))):
                runtime.submit(repr, script_futures.SlowArgument(number))
            assert runtime.submit(abs, -3).result(timeout=60) == 3
    finally:
        signal.signal(number, before)


def test_the_name_of_a_call_is_short() -> None:
    import script_futures

    def name(function: Any) -> str:
        future = runtime.submit(function, script_futures.BadArgument(ValueError("x")))
        error = future.exception(timeout=60)
        assert error is not None
        return str(error.__notes__[0]).partition(" and its")[0]

    with Runtime(workers=1, notice=lambda _: None) as runtime:
        assert name(partial(partial(print, "x" * 10_000), 2)) == "print"
        assert name(operator.itemgetter(*range(10_000))) == "itemgetter"
        assert name(script_futures.BadArgument) == "BadArgument"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, ValueError])
def test_what_a_callback_raises_ends_nothing(kind: type[BaseException]) -> None:
    def fail(_: object) -> None:
        raise kind

    with Runtime(workers=1, notice=lambda _: None) as runtime:
        future = runtime.submit(time.sleep, 0.2)
        future.add_done_callback(fail)
        assert future.result(timeout=60) is None
        assert [runtime.submit(abs, -n).result(timeout=60) for n in range(3)] == [0, 1, 2]


def test_what_has_not_begun_is_cancelled_and_what_runs_is_done() -> None:
    with Runtime(workers=1, notice=lambda _: None) as runtime:
        first = runtime.submit(time.sleep, 1.0)
        rest = [runtime.submit(abs, -n) for n in range(20)]
        while not first.running():
            time.sleep(0.01)
        runtime.shutdown(cancel_futures=True)
    assert first.result() is None
    done = [future for future in rest if not future.cancelled()]
    assert all(future.done() for future in rest) and len(done) <= 1
    with pytest.raises(CancelledError):
        rest[-1].result()


def test_a_worker_that_dies_breaks_as_executors_do() -> None:
    with Runtime(workers=1, notice=lambda _: None) as runtime, pytest.raises(BrokenExecutor) as caught:
        runtime.submit(os._exit, 3).result(timeout=60)
    assert isinstance(caught.value, WorkerDied)


def test_a_runtime_that_nobody_keeps_does_what_was_submitted_and_leaves_no_process(tmp_path: Path) -> None:
    import script_futures

    def submit() -> tuple[list[Any], list[int]]:
        runtime = Runtime(workers=1, notice=lambda _: None)
        runtime.wait_until_loaded()
        futures = [runtime.submit(script_futures.touch, tmp_path / str(n)) for n in range(3)]
        return futures, list(runtime.supervisor.list_pids().values())

    futures, pids = submit()
    wait(futures, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert not wait_until_gone(pids, 10)


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)"])
def test_a_program_does_not_end_before_its_work_is_done(tmp_path: Path, end: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "from pathlib import Path\n"
        "from prefork import Runtime\n"
        "from script_futures import touch\n"
        "def start():\n"
        "    runtime = Runtime(workers=1)\n"
        "    for name in ('a', 'b'):\n"
        f"        runtime.submit(touch, Path({str(tmp_path / 'made')!r} + name), 0.3)\n"
        "if __name__ == '__main__':\n"
        f"    start()\n    {end or 'pass'}\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (3 if end else 0), done.stderr
    assert sorted(path.name for path in tmp_path.glob("made*")) == ["madea", "madeb"]


def test_in_a_process_that_was_forked_since_it_says_what_to_do() -> None:
    with Runtime(workers=1, notice=lambda _: None) as runtime:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                runtime.submit(abs, -1)
            except RuntimeError as error:
                os.write(writing, str(error).encode())
            runtime.shutdown()
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read().decode()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert f"belongs to process {os.getpid()}" in said and "post_fork" in said
        assert runtime.submit(abs, -1).result(timeout=60) == 1


def test_a_managers_queue_can_be_an_argument() -> None:
    import script_futures

    with multiprocessing.Manager() as manager, Runtime(workers=2, notice=lambda _: None) as runtime:
        queue = manager.Queue()
        calls = [runtime.submit(script_futures.put, queue, number) for number in range(4)]
        assert [call.result(timeout=60) for call in calls] == [0, 1, 2, 3]
        assert sorted(queue.get(timeout=10) for _ in range(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [multiprocessing.Queue, multiprocessing.Event])
def test_what_only_inheritance_can_share_is_refused_as_by_other_executors(make: Any) -> None:
    import script_futures

    with Runtime(workers=1, notice=lambda _: None) as runtime:
        with pytest.raises(RuntimeError, match="should only be shared between processes through inheritance"):
            runtime.submit(script_futures.put, make(), 1).result(timeout=60)
        assert runtime.submit(abs, -1).result(timeout=60) == 1


def test_lambdas_and_closures_go_by_value() -> None:
    factor = 3

    def load() -> dict[str, int]:
        return {"factor": factor}

    with Runtime(load=load, workers=1, notice=lambda _: None) as runtime:
        assert runtime.submit(lambda model, value: model["factor"] * value + factor, 2).result(timeout=60) == 9


def test_what_cannot_go_at_all_is_an_error_of_that_call() -> None:
    lock = threading.Lock()
    with Runtime(workers=1, notice=lambda _: None) as runtime:
        error = runtime.submit(lambda: str(lock)).exception(timeout=60)
        assert isinstance(error, TypeError) and "cannot pickle" in str(error)
        assert runtime.submit(abs, -1).result(timeout=60) == 1


PROGRAM = """
from prefork import Runtime
class Model:
    def __init__(self): self.factor = 3
def load(): return Model()
def score(model, value): return Model().factor * model.factor * value
with Runtime(load=load, workers=1) as runtime:
    print(runtime.submit(score, 2).result(60))
"""


@pytest.mark.exec
@pytest.mark.parametrize("how", ["-c", "stdin"])
def test_functions_of_a_program_without_a_file_go_by_value(how: str) -> None:
    command = [sys.executable, "-c", PROGRAM] if how == "-c" else [sys.executable, "-"]
    given = None if how == "-c" else PROGRAM
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "18\n", done.stderr


def test_with_many_workers_every_future_has_the_result_of_its_own_call() -> None:
    """Short and long calls, in bursts: what some workers were given is taken back while others are given more."""

    def give_back(number: int, seconds: float) -> int:
        if seconds:
            time.sleep(seconds)
        return number

    with Runtime(workers=4) as runtime:
        for _ in range(25):
            futures = [runtime.submit(give_back, number, 0.02 * (number % 37 == 0)) for number in range(150)]
            assert [future.result() for future in futures] == list(range(150))
