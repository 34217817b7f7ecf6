"""The model server: one process has the models, workers ask it; what fails in it costs no more than it must."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefork import Job, Runtime, WorkerDied
from prefork.engines.batching import Batching
from prefork.errors import OutOfMemory
from prefork.pool.jobs import JobResult
from prefork.pool.tasks import HangLimit
from tests.prefork.command import write_job

pytestmark = pytest.mark.usefixtures("script_engine")


def write_talks(folder: Path, count: int, lines: int = 3) -> list[Job]:
    return [
        write_job(folder, f"talk{number:02}", *[f"say {'x' * (number + line)}" for line in range(lines)])
        for number in range(count)
    ]


def serve(engine: str = "faulty", workers: int = 2, batch_size: int | None = None, **options: Any) -> Runtime:
    return Runtime(engine, workers=workers, strategy="server", batching=Batching(batch_size=batch_size), **options)


def run(jobs: list[Job], **options: Any) -> dict[str, JobResult]:
    with serve(**options) as runtime:
        assert runtime.plan.strategy == "server"
        return {result.job.id: result for result in runtime.map(jobs)}


def read(results: dict[str, JobResult]) -> dict[str, list[tuple[str, float]]]:
    """What came of each job; not how, and where."""
    found = {name: result.document for name, result in results.items()}
    return {name: [(u.text, u.words[0].end or 0.0) for u in d.utterances] for name, d in found.items() if d}


def count_together(results: dict[str, JobResult]) -> list[float]:
    """For each segment, how many the model was given with it."""
    documents = [result.document for result in results.values() if result.document]
    return [utterance.words[0].score or 0.0 for document in documents for utterance in document.utterances]


def test_what_comes_out_is_what_forked_workers_make(tmp_path: Path) -> None:
    jobs = write_talks(tmp_path, 6)
    with Runtime("faulty", workers=2, strategy="fork") as runtime:
        forked = {result.job.id: result for result in runtime.map(jobs)}
    served = run(jobs)
    assert len(read(forked)) == 6
    assert read(served) == read(forked)


def test_the_model_is_in_one_process_and_workers_are_children_of_another(tmp_path: Path) -> None:
    with serve() as runtime:
        assert all(result.error is None for result in runtime.map(write_talks(tmp_path, 4)))
        names = runtime.supervisor.list_pids()
        parents = {psutil.Process(names[f"worker {slot}"]).ppid() for slot in range(2)}
        assert parents == {names["zygote"]}
        assert psutil.Process(names["server"]).ppid() == os.getpid()


def test_batches_are_made_across_files_and_workers(tmp_path: Path) -> None:
    results = run(write_talks(tmp_path, 30, lines=1), workers=3, batch_size=8)
    together = count_together(results)
    assert len(together) == 30
    assert max(together) > 1
    assert max(together) <= 8


def test_one_segment_is_not_kept_waiting_for_company(tmp_path: Path) -> None:
    results = run([write_job(tmp_path, "lonely", "say one")], batch_size=8)
    assert count_together(results) == [1.0]


def test_a_stage_of_its_own_engine_follows_in_the_same_server(tmp_path: Path) -> None:
    from prefork.pool.pipeline import Stage

    with Runtime((Stage("script"), Stage("relay")), workers=2, strategy="server") as runtime:
        results = {result.job.id: result for result in runtime.map(write_talks(tmp_path, 3, lines=2))}
    document = results["talk01.txt"].document
    assert document is not None
    assert [utterance.text for utterance in document.utterances] == ["say x relay 15", "say xx relay 18"]


def test_a_segment_that_the_model_cannot_do_costs_its_job_alone(tmp_path: Path) -> None:
    jobs = write_talks(tmp_path, 8)
    results = run([*jobs, write_job(tmp_path, "bad", "say one", "model bug", "say two")], batch_size=4)
    assert "a bug in the engine" in str(results.pop("bad.txt").error)
    assert [result.error for result in results.values()] == [None] * 8


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["exit", "kill"])
def test_a_segment_that_ends_the_server_once_costs_nothing(tmp_path: Path, verb: str) -> None:
    marker = tmp_path / "marker"
    notices: list[str] = []
    jobs = [*write_talks(tmp_path, 6), write_job(tmp_path, "sick", "say one", f"model {verb} {marker}")]
    results = run(jobs, batch_size=4, notice=notices.append)
    assert marker.exists()
    assert [result.error for result in results.values()] == [None] * 7
    assert any("server" in notice and "started again" in notice for notice in notices)


def test_a_segment_that_always_ends_the_server_is_found_and_costs_its_job_alone(tmp_path: Path) -> None:
    jobs = write_talks(tmp_path, 6, lines=2)
    results = run([*jobs, write_job(tmp_path, "poison", "say one", "model exit")], batch_size=4)
    error = results.pop("poison.txt").error
    assert isinstance(error, WorkerDied)
    assert "exited with status 7" in str(error)
    assert [result.error for result in results.values()] == [None] * 6


@pytest.mark.slow
def test_a_job_with_many_segments_that_end_the_server_costs_no_more_than_one_does(tmp_path: Path) -> None:
    notices: list[str] = []
    jobs = [*write_talks(tmp_path, 3), write_job(tmp_path, "poison", *["model exit"] * 6)]
    results = run(jobs, notice=notices.append)
    assert isinstance(results.pop("poison.txt").error, WorkerDied)
    assert [result.error for result in results.values()] == [None] * 3
    assert sum("started again" in notice for notice in notices) == 2


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path: Path) -> None:
    notices: list[str] = []
    jobs = [*write_talks(tmp_path, 12, lines=1), write_job(tmp_path, "large", "model starve 2")]
    results = run(jobs, workers=4, batch_size=8, notice=notices.append)
    assert [result.error for result in results.values()] == [None] * 13
    assert count_together({"large": results["large.txt"]})[0] <= 2


def test_what_does_not_fit_even_alone_is_said_to_be_so(tmp_path: Path) -> None:
    results = run([*write_talks(tmp_path, 4), write_job(tmp_path, "huge", "model starve 0")], batch_size=4)
    error = results.pop("huge.txt").error
    assert isinstance(error, OutOfMemory)
    assert "only this segment in the batch" in str(error)
    assert [result.error for result in results.values()] == [None] * 4


@pytest.mark.slow
def test_a_server_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    jobs = [*write_talks(tmp_path, 3), write_job(tmp_path, "slow", f"model hang {marker}")]
    results = run(jobs, hang_limit=HangLimit(1.0, 0.1))
    assert [result.error for result in results.values()] == [None] * 4


def test_a_server_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    slow = [write_job(tmp_path, f"talk{number}", *["model sleep"] * 20) for number in range(12)]
    killed: list[int] = []
    with serve(batch_size=2) as runtime:
        ended = threading.Event()

        def kill() -> None:
            while not ended.is_set() and len(killed) < 3:
                pid = runtime.supervisor.list_pids().get("server", 0)
                pool = runtime.supervisor.pool
                servers = pool.models.servers if pool is not None else None
                if servers is not None and servers.all[0].running and pid and pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                time.sleep(0.2)

        thread = threading.Thread(target=kill)
        thread.start()
        results = {result.job.id: result for result in runtime.map(slow)}
        ended.set()
        thread.join()
    assert len(killed) == 3
    assert [result.error for result in results.values()] == [None] * 12
    assert all(len(lines) == 20 for lines in read(results).values())


def test_a_worker_that_dies_costs_the_server_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    results = run([*write_talks(tmp_path, 6), write_job(tmp_path, "sick", "say one", f"kill {marker}")], batch_size=4)
    assert [result.error for result in results.values()] == [None] * 7


def test_a_segment_that_cannot_be_prepared_costs_its_job_alone(tmp_path: Path) -> None:
    results = run([*write_talks(tmp_path, 4), write_job(tmp_path, "bad", "say one", "raise", "say two")])
    assert "cannot be processed" in str(results.pop("bad.txt").error)
    assert [result.error for result in results.values()] == [None] * 4


def test_a_worker_prepares_no_more_than_the_server_has_room_for(tmp_path: Path) -> None:
    """Back-pressure: while the model is busy with the first segment, most of the others wait to be prepared."""
    marks = [tmp_path / f"mark{number}" for number in range(200)]
    job = write_job(tmp_path, "long", "model pause", *[f"note {mark}" for mark in marks])
    with serve(workers=1, batch_size=2) as runtime:
        results = runtime.map([job])
        until = time.monotonic() + 20
        while not marks[0].exists() and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(1.0)
        prepared = sum(mark.exists() for mark in marks)
        assert [result.error for result in results] == [None]
    assert 1 < prepared < 150


@pytest.mark.slow
def test_more_segments_wait_than_files_may_be_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="only POSIX limits open files")
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, usual[1]))
    try:
        jobs = [write_job(tmp_path, f"talk{number}", "model pause", *["say one"] * 300) for number in range(2)]
        notices: list[str] = []
        with serve(batch_size=400, notice=notices.append) as runtime:
            results = {result.job.id: result for result in runtime.map(jobs)}
            assert runtime.supervisor.deaths == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    assert [result.error for result in results.values()] == [None] * 2
    assert 1 < max(count_together(results)) <= 64


def test_a_model_that_cannot_be_loaded_ends_the_run_with_the_reason() -> None:
    from prefork.engines.base import LoadError

    with pytest.raises(LoadError, match="told not to load"), serve("script", options={"fail": "load"}):
        pass


def test_a_segment_longer_than_max_audio_len_is_refused_and_not_dropped(tmp_path: Path) -> None:
    batching = Batching(max_num_elements=16_000, max_audio_len=8_000)
    with Runtime("faulty", workers=2, strategy="server", batching=batching) as runtime:
        results = list(runtime.map(write_talks(tmp_path, 2)))
    assert all("longer than `max_audio_len`" in str(result.error) for result in results)
