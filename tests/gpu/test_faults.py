"""What fails on a GPU costs no more than it must: the server dies, memory runs out, CUDA's context breaks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefork import Job, Runtime, WorkerDied
from prefork.engines.batching import Batching
from prefork.errors import OutOfMemory
from prefork.pool.jobs import JobResult
from tests.gpu.machine import DEVICES, STAND_IN

_ENGINE = Path(__file__).parent / "fragile"
_SECONDS = 120.0


@pytest.fixture(autouse=True)
def _fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's engine is installed: its folder is where Python looks for packages."""
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(_ENGINE), known] if known else [str(_ENGINE)]))
    monkeypatch.syspath_prepend(str(_ENGINE))


def _write(folder: Path, name: str, *lines: str) -> Job:
    path = folder / f"{name}.txt"
    path.write_text("\n".join(lines))
    return Job(path.name, path, seconds=float(len(lines)))


def _write_talks(folder: Path, count: int) -> list[Job]:
    return [_write(folder, f"talk{number:02}", *(["say " + "x" * number] * 3)) for number in range(count)]


@contextmanager
def _start(notices: list[str], **options: object) -> Iterator[Runtime]:
    with Runtime("fragile", devices=DEVICES, notice=notices.append, **options) as runtime:  # type: ignore[arg-type]
        yield runtime


def _serve(jobs: list[Job], batch_size: int) -> tuple[dict[str, JobResult], list[str]]:
    notices: list[str] = []
    with _start(notices, workers=4, strategy="server", batching=Batching(batch_size=batch_size)) as runtime:
        results = {result.job.id: result for result in runtime.map(jobs)}
    for notice in notices:
        print(f"\n{notice}", end="")
    return results, notices


def _list_said(results: dict[str, JobResult]) -> dict[str, list[float | None]]:
    documents = {name: result.document for name, result in results.items() if result.document}
    return {name: [u.words[0].end for u in document.utterances] for name, document in documents.items()}


def _count_together(result: JobResult) -> list[float]:
    assert result.document is not None, result.error
    return [utterance.words[0].score or 0.0 for utterance in result.document.utterances]


def _check_talks(results: dict[str, JobResult]) -> None:
    said = _list_said(results)
    assert said == {f"talk{number:02}.txt": [2.0 * number] * 3 for number in range(len(results))}


def test_a_server_that_is_killed_during_a_batch_loses_nothing(tmp_path: Path) -> None:
    notices: list[str] = []
    jobs = [_write(tmp_path, f"talk{number}", *["sleep"] * 20) for number in range(8)]
    with _start(notices, workers=4, strategy="server", batching=Batching(batch_size=2)) as runtime:
        killed: list[int] = []
        thread = threading.Thread(target=_kill_at_work, args=(runtime, killed))
        thread.start()
        results = {result.job.id: result for result in runtime.map(jobs)}
        thread.join()
    print(f"\n{'; '.join(notices)}")
    assert killed and any("SIGKILL" in notice and "started again" in notice for notice in notices)
    assert [result.error for result in results.values()] == [None] * 8
    assert all(len(values) == 20 for values in _list_said(results).values())


def _kill_at_work(runtime: Runtime, killed: list[int]) -> None:
    def find() -> int:
        pool = runtime.supervisor.pool
        servers = pool.models.servers if pool is not None else None
        working = servers is not None and servers.all[0].running
        return runtime.supervisor.list_pids().get("server", 0) if working else 0

    if pid := _wait(find):
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


def _wait(find: Callable[[], int]) -> int:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        if found := find():
            return found
        time.sleep(0.01)
    return 0


def test_a_batch_that_does_not_fit_is_halved_and_the_run_goes_on(tmp_path: Path) -> None:
    """Each of its segments takes three tenths of the GPU's memory for each that is with it."""
    large = [_write(tmp_path, f"large{number}", *["fill 0.3"] * 4) for number in range(2)]
    results, notices = _serve([*_write_talks(tmp_path, 6), *large], batch_size=8)
    assert [result.error for result in results.values()] == [None] * 8
    together = [count for job in large for count in _count_together(results.pop(job.id))]
    print(f"\nin batches of {together}")
    assert max(together) <= 3
    _check_talks(results)
    assert any("out of memory" in notice.lower() and "half the size" in notice for notice in notices)


def test_what_does_not_fit_even_alone_costs_its_job_and_says_how_much_it_was(tmp_path: Path) -> None:
    results, _ = _serve([*_write_talks(tmp_path, 6), _write(tmp_path, "huge", "say x", "fill 1.5")], batch_size=4)
    error = results.pop("huge.txt").error
    print(f"\n{error}")
    assert isinstance(error, OutOfMemory)
    assert "Tried to allocate" in str(error) and "only this segment in the batch" in str(error)
    _check_talks(results)


def test_a_broken_context_costs_the_server_and_in_the_end_one_job(tmp_path: Path) -> None:
    results, notices = _serve([*_write_talks(tmp_path, 6), _write(tmp_path, "bad", "say x", "assert")], batch_size=2)
    error = results.pop("bad.txt").error
    print(f"\n{error}")
    assert isinstance(error, WorkerDied)
    assert STAND_IN or "device-side assert" in str(error)
    assert sum("started again" in notice for notice in notices) >= 2
    _check_talks(results)


def test_a_worker_with_a_model_of_its_own_is_replaced_when_its_context_breaks(tmp_path: Path) -> None:
    """Without a server, too, the job that does it fails, and no other."""
    notices: list[str] = []
    with _start(notices, workers=2, strategy="spawn", batching=Batching(batch_size=1)) as runtime:
        jobs = [*_write_talks(tmp_path, 6), _write(tmp_path, "bad", "say x", "assert")]
        results = {result.job.id: result for result in runtime.map(jobs)}
    error = results.pop("bad.txt").error
    print(f"\n{error}; {'; '.join(notices)}")
    assert error is not None
    _check_talks(results)
