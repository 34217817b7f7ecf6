"""The Python API: an executor whose workers share one model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, as_completed, wait
from pathlib import Path
from typing import Any

import pytest

from prefork import HangLimit, Job, LoadError, Runtime, Stopped, WorkerDied
from tests.prefork.command import wait_until_gone

pytestmark = pytest.mark.usefixtures("script_engine")


def _write(path: Path, *lines: str) -> Job:
    path.write_text("\n".join(lines))
    return Job(path.name, path, seconds=float(len(lines)))


@pytest.mark.dependencies
def test_a_function_gets_the_model_that_was_loaded_once() -> None:
    import script_functions as functions

    expected = [functions.score(functions.load_linear(), value) for value in range(20)]
    with Runtime(load=functions.load_linear, workers=3) as runtime:
        assert list(runtime.map(functions.score, range(20))) == expected
        descriptions = [runtime.submit(functions.describe, 0.0).result() for _ in range(3)]
        assert {d["parent"] for d in descriptions} == {runtime.supervisor.zygote_pid()}


def test_a_runtime_without_a_model_runs_functions_as_they_are() -> None:
    import script_functions as functions

    with Runtime(workers=1) as runtime:
        assert runtime.submit(functions.add, 2, right=3).result() == 5


def test_workers_have_their_threads_their_own_random_numbers_and_nothing_inherited() -> None:
    import script_functions as functions

    with Runtime(load=functions.load_linear, workers=2, threads=3) as runtime:
        first, second = runtime.map(functions.describe, [0.5, 0.5])  # long enough for each to have one
    assert first["pid"] != second["pid"]
    assert first["threads"] == second["threads"] == 3
    assert all(a != b for a, b in zip(first["random"], second["random"], strict=True))
    assert (
        len(first["fds"]) == len(second["fds"]) == 6
    )  # stdin, stdout, stderr, its channel, tokens, the tracker's link
    assert first["group"] != os.getsid(0)


def test_a_worker_that_dies_is_replaced_and_its_call_is_tried_once_more(tmp_path: Path) -> None:
    import script_functions as functions

    with Runtime(load=functions.load_linear, workers=1) as runtime:
        pid = runtime.submit(functions.describe, 0.0).result()["pid"]
        assert runtime.submit(functions.die_once, str(tmp_path / "marker")).result() != pid


def test_a_call_that_kills_two_workers_raises_and_the_pool_lives_on() -> None:
    import script_functions as functions

    with Runtime(load=functions.load_linear, workers=2) as runtime:
        doomed = runtime.submit(functions.die, 9)
        others = [runtime.submit(functions.score, value) for value in range(10)]
        with pytest.raises(WorkerDied, match="exited with status 9; its worker died twice"):
            doomed.result()
        assert all(isinstance(future.result(), float) for future in others)


def test_a_write_to_a_shared_weight_kills_that_worker_alone_and_names_the_weight() -> None:
    import script_functions as functions

    with Runtime(load=functions.load_linear, workers=2) as runtime:
        before = runtime.submit(functions.score, 1.0).result()
        with pytest.raises(WorkerDied, match=r"the model wrote to shared weights \(weight\)"):
            runtime.submit(functions.train).result()
        assert runtime.submit(functions.score, 1.0).result() == before


def test_an_exception_in_a_function_comes_back_with_its_traceback() -> None:
    import script_functions as functions

    with Runtime(load=functions.load_linear, workers=1) as runtime:
        with pytest.raises(LookupError, match="nothing of that name") as caught:
            runtime.submit(functions.fail).result()
        assert "script_functions.py" in str(caught.value.__cause__)
        with pytest.raises(functions.Demanding, match="more") as demanding:
            runtime.submit(functions.demand).result()
        assert demanding.value.why == "because"
        with pytest.raises(TypeError, match="cannot pickle"):
            runtime.submit(functions.return_unpicklable).result()
        assert runtime.submit(functions.return_closure, 7).result()() == 7


def test_a_function_that_cannot_be_sent_fails_its_future_with_the_remedy() -> None:
    with Runtime(workers=1) as runtime:
        lock = threading.Lock()
        future = runtime.submit(lambda: str(lock))
        error = future.exception()
        assert error is not None
        assert "something in them cannot: make it there" in error.__notes__[0]


def test_a_load_function_that_fails_ends_the_block_before_it_begins() -> None:
    import script_functions as functions

    with pytest.raises(LoadError, match="the disk with the weights is gone"), Runtime(load=functions.load_nothing_good):
        pytest.fail("the block must not begin")


def test_a_process_whose_openmp_pool_may_run_refuses_to_fork_if_asked_to() -> None:
    import script_functions as functions

    with (
        pytest.raises(LoadError, match=r"cannot fork: torch computes with 2 threads.*set_num_threads\(1\)"),
        Runtime(load=functions.load_with_threads, strategy="fork"),
    ):
        pytest.fail("the block must not begin")


def test_leaving_the_block_by_an_exception_drops_what_has_not_begun_and_ends_every_process() -> None:
    import script_functions as functions

    waiting: list[Future[None]] = []
    with pytest.raises(KeyError), Runtime(workers=1) as runtime:
        zygote = runtime.supervisor.zygote_pid()
        assert zygote is not None
        waiting += [runtime.submit(time.sleep, 0.5) for _ in range(20)]
        raise KeyError("a bug in the block")
    assert zygote is not None and not wait_until_gone([zygote], 0)
    assert any(isinstance(future.exception(), Stopped) for future in waiting)
    with pytest.raises(RuntimeError, match="after shutdown"):
        runtime.submit(functions.add, 1, 1)


@pytest.mark.parametrize("argument", [{"workers": 0}, {"workers": -3}, {"threads": 0}, {"workers": 1.5}])
def test_numbers_that_make_no_sense_are_refused_with_their_name(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(argument))):
        Runtime(**argument)


@pytest.mark.exec  # it says whether the program has imported torch
def test_functions_of_a_script_work_and_the_script_is_not_run_twice(tmp_path: Path) -> None:
    script = tmp_path / "user_script.py"
    script.write_text(
        "import sys\n"
        "from prefork import Runtime\n"
        "def load():\n"
        "    import torch\n"
        "    return torch.nn.Identity()\n"
        "def double(model, x):\n"
        "    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with Runtime(load=load, workers=2) as runtime:\n"
        "        print([f.result() for f in [runtime.submit(double, i) for i in range(4)]])\n"
        "    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("[0, 2, 4, 6]\nFalse\n", 0), done.stderr


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text("from prefork import Runtime\nwith Runtime(workers=1) as runtime:\n    pass\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "__name__ ==" in done.stderr


def test_an_engine_of_another_package_runs_jobs_and_results_come_with_their_job(tmp_path: Path) -> None:
    jobs = [
        _write(tmp_path / "good", "say hello", "say you"),
        _write(tmp_path / "bad", "say hello", "raise"),
        _write(tmp_path / "empty"),
        _write(tmp_path / "buggy", "bug"),
    ]
    with Runtime("script", workers=2, options={"factor": 3.0}) as runtime:
        results = {result.job.id: result for result in runtime.map(jobs)}
    document = results["good"].document
    assert document is not None
    assert [utterance.words[0].end for utterance in document.utterances] == [15.0, 9.0]
    assert "change it" in str(results["bad"].error)
    assert "write something" in str(results["empty"].error)
    assert isinstance(results["buggy"].error, ZeroDivisionError)


def test_an_engine_draws_the_same_numbers_whoever_runs_it(tmp_path: Path) -> None:
    jobs = [_write(tmp_path / f"job{i}", *["say x"] * 5) for i in range(4)]

    def draw(workers: int) -> dict[str, list[float | None]]:
        with Runtime("script", workers=workers) as runtime:
            return {
                r.job.id: [u.words[0].score for u in r.document.utterances] for r in runtime.map(jobs) if r.document
            }

    assert draw(1) == draw(3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "reason"),
    [
        ("kill", "killed by SIGKILL"),
        ("exit", "exited with status 7"),
        ("hang", "no progress for 1 s"),
        ("stop", "no progress for 1 s"),
    ],
)
def test_a_job_that_kills_or_hangs_its_workers_is_set_aside_and_the_others_are_done(
    verb: str, reason: str, tmp_path: Path
) -> None:
    jobs = [_write(tmp_path / "deadly", verb), *(_write(tmp_path / f"good{i}", "say x") for i in range(5))]
    once = _write(tmp_path / "once", f"{verb} {tmp_path / 'marker'}")
    with Runtime("script", workers=2, hang_limit=HangLimit(1.0, 0.1)) as runtime:
        results = {result.job.id: result for result in runtime.map([*jobs, once])}
    assert reason in str(results.pop("deadly").error)
    assert all(result.error is None for result in results.values())


def test_a_write_to_the_weights_names_the_engine(tmp_path: Path) -> None:
    with Runtime("script", workers=1) as runtime:
        (result,) = runtime.map([_write(tmp_path / "writes", f"say {'x' * 1234}")])
    assert "engine script wrote to shared weights" in str(result.error)


@pytest.mark.slow
def test_a_long_job_is_shared_out_over_the_workers(tmp_path: Path) -> None:
    job = Job("long", tmp_path / "long", seconds=1.0)
    job.source.write_text("\n".join(["sleep"] * 240))  # one second of audio each: four chunks
    with Runtime("script", workers=4) as runtime:
        results = runtime.map([job])
        busy: set[int] = set()
        deadline = time.monotonic() + 10
        while len(busy) < 4 and time.monotonic() < deadline:
            busy |= {worker.slot for worker in runtime.supervisor.status() if worker.label == "long"}
            time.sleep(0.02)
        assert busy == {0, 1, 2, 3}
        assert next(results).error is None


@pytest.mark.slow
def test_the_zygote_is_replaced_when_it_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    jobs = [_write(tmp_path / f"job{i}", *["sleep"] * 5, "say x") for i in range(8)]
    with Runtime("script", workers=2) as runtime:
        results = runtime.map(jobs)
        first = next(results)
        zygote = runtime.supervisor.zygote_pid()
        assert zygote is not None
        os.kill(zygote, signal.SIGKILL)
        assert all(result.error is None for result in [first, *results])
        assert runtime.supervisor.zygote_pid() != zygote


def test_when_the_program_is_killed_its_processes_die_with_it(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import time\nfrom prefork import Runtime\n"
        "if __name__ == '__main__':\n"
        "    with Runtime(workers=2) as runtime:\n"
        "        runtime.submit(time.sleep, 600)\n"
        "        runtime.submit(int).result()\n"
        "        print(runtime.supervisor.zygote_pid(), *[w.pid for w in runtime.supervisor.status()], flush=True)\n"
        "        time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) == 3
        program.kill()
    assert not wait_until_gone(pids, 5)


@pytest.mark.slow
def test_an_unknown_engine_is_refused_with_those_there_are() -> None:
    with pytest.raises(LoadError, match=r"no engine named 'scrpt'.*did you mean script"), Runtime("scrpt"):
        pytest.fail("the block must not begin")
    with pytest.raises(LoadError, match="does not take these options"), Runtime("script", options={"colour": 1}):
        pytest.fail("the block must not begin")
    with pytest.raises(LoadError, match="told not to load"), Runtime("script", options={"fail": "load"}):
        pytest.fail("the block must not begin")


def test_a_worker_that_dies_in_the_middle_loses_only_the_segment_it_was_at(tmp_path: Path) -> None:
    """Each segment kills its first worker: with more deaths than attempts, because none comes twice."""
    lines = [f"exit {tmp_path / f'marker{i}'}" for i in range(5)]
    with Runtime("script", workers=1) as runtime:
        (result,) = runtime.map([_write(tmp_path / "deadly", *lines)])
    assert result.error is None
    assert runtime.supervisor.deaths == 5


def test_what_workers_print_comes_out_and_their_deaths_are_logged(tmp_path: Path) -> None:
    script = tmp_path / "printing.py"
    script.write_text(
        "import os, sys\nfrom prefork import Runtime\n"
        "def speak():\n    print('out'); print('err', file=sys.stderr)\n"
        "if __name__ == '__main__':\n"
        "    with Runtime(workers=1) as runtime:\n"
        "        runtime.submit(speak).result()\n"
        "        runtime.submit(os._exit, 4).exception()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "out\n"
    assert done.stderr.startswith("err\n")
    assert "exited with status 4; retrying it on a new worker" in done.stderr


def test_a_call_that_has_not_begun_can_be_cancelled_and_one_that_runs_cannot() -> None:
    with Runtime(workers=1) as runtime:
        running = runtime.submit(time.sleep, 1.0)
        waiting = [runtime.submit(time.sleep, 60) for _ in range(3)]
        while not running.running():
            time.sleep(0.01)
        assert all(future.cancel() for future in waiting)
        assert not running.cancel()
        done, not_done = wait([running, *waiting], timeout=10)
        assert (len(done), len(not_done)) == (4, 0)
    assert running.result() is None


def test_what_a_function_raises_is_its_result_even_sys_exit() -> None:
    with Runtime(workers=1) as runtime, pytest.raises(SystemExit):
        runtime.submit(sys.exit, 3).result()


@pytest.mark.slow
def test_it_goes_where_any_executor_goes() -> None:
    import script_functions as functions

    async def use(runtime: Runtime) -> int:
        return await asyncio.get_running_loop().run_in_executor(runtime, functions.add, 1, 2)

    with Runtime(workers=2) as runtime:
        assert asyncio.run(use(runtime)) == 3
        assert sorted(f.result() for f in as_completed([runtime.submit(abs, -i) for i in range(50)])) == list(range(50))
        big = b"x" * 50_000_000
        assert runtime.submit(len, big).result() == len(big)
        assert runtime.submit(bytes, 50_000_000).result() == bytes(50_000_000)
        with pytest.raises(TimeoutError):
            list(runtime.map(time.sleep, [2.0], timeout=0.1))
