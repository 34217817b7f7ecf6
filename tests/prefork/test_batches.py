"""Segments of several jobs in one go: what is done together, and that one that fails costs the others nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefork import Job, Runtime, WorkerDied
from prefork.pool.jobs import JobResult
from prefork.pool.tasks import Task, TaskQueue, bundle
from tests.prefork.command import write_job

pytestmark = pytest.mark.usefixtures("script_engine")


def _run(jobs: list[Job], engine: str = "choir", workers: int = 1) -> dict[str, JobResult]:
    with Runtime(engine, workers=workers) as runtime:
        return {result.job.id: result for result in runtime.map(jobs)}


def _count_together(result: JobResult) -> list[float]:
    """For each segment, how many the model was given with it."""
    assert result.document is not None, result.error
    return [utterance.words[0].score or 0.0 for utterance in result.document.utterances]


def test_segments_of_several_jobs_are_done_in_one_go(tmp_path: Path) -> None:
    jobs = [write_job(tmp_path, f"talk{number:02}", "say one", "say two") for number in range(20)]
    results = _run(jobs)
    together = [count for result in results.values() for count in _count_together(result)]
    assert len(together) == 40
    assert set(together) == {10.0}  # four goes


@pytest.mark.slow
def test_what_comes_of_a_segment_does_not_depend_on_its_company(tmp_path: Path) -> None:
    jobs = [
        write_job(tmp_path, f"talk{number}", *["say " + "x" * (number + line) for line in range(3)])
        for number in range(5)
    ]

    def read(results: dict[str, JobResult]) -> dict[str, list[float | None]]:
        return {i: [u.words[0].end for u in r.document.utterances] for i, r in results.items() if r.document}

    alone = read(_run(jobs, "script"))
    assert len(alone) == 5
    assert read(_run(jobs)) == alone
    assert read(_run(jobs, workers=2)) == alone


def test_towards_the_end_every_worker_gets_its_share(tmp_path: Path) -> None:
    jobs = [write_job(tmp_path, f"talk{number}", "say one", "say two") for number in range(4)]
    results = _run(jobs, workers=2)
    together = [count for result in results.values() for count in _count_together(result)]
    assert max(together) <= 4  # of eight


@pytest.mark.slow
@pytest.mark.parametrize(("line", "error"), [("raise", "cannot be processed"), ("bug", "a bug in the engine")])
def test_a_segment_that_fails_costs_its_job_alone(tmp_path: Path, line: str, error: str) -> None:
    jobs = [write_job(tmp_path, f"talk{number}", "say one", "say two") for number in range(4)]
    results = _run([*jobs, write_job(tmp_path, "bad", "say one", line)])
    assert error in str(results.pop("bad.txt").error)
    assert [result.error for result in results.values()] == [None] * 4


def test_a_job_that_fails_does_so_once_wherever_its_other_chunk_is(tmp_path: Path) -> None:
    jobs = [write_job(tmp_path, f"talk{number}", "say one", "say two") for number in range(4)]
    results = _run([*jobs, write_job(tmp_path, "bad", "raise", *["say one"] * 21)], workers=2)
    assert "cannot be processed" in str(results.pop("bad.txt").error)
    assert [result.error for result in results.values()] == [None] * 4


def test_a_segment_that_kills_its_worker_costs_its_job_alone(tmp_path: Path) -> None:
    jobs = [write_job(tmp_path, f"talk{number}", "say one", "say two") for number in range(3)]
    results = _run([*jobs, write_job(tmp_path, "bad", "kill")])
    assert isinstance(results.pop("bad.txt").error, WorkerDied)
    assert [result.error for result in results.values()] == [None] * 3


def test_what_only_fails_in_company_is_done_alone(tmp_path: Path) -> None:
    jobs = [write_job(tmp_path, f"talk{number}", "say one") for number in range(3)]
    results = _run([*jobs, write_job(tmp_path, "long", "say thirteen char")])
    assert [result.error for result in results.values()] == [None] * 4
    assert _count_together(results["long.txt"]) == [1.0]


def _make_task(name: str, seconds: float, items: int, log: list[tuple[str, bytes | None, object]]) -> Task:
    return Task(
        "run", ("choir",), lambda r, e: log.append((name, r, e)), engine="choir", items=[b""] * items, seconds=seconds
    )


def test_a_bundle_hands_its_pieces_out_in_order() -> None:
    log: list[tuple[str, bytes | None, object]] = []
    parts = [_make_task("a", 2.0, 2, log), _make_task("b", 1.0, 1, log)]
    whole = bundle(parts)
    assert whole.items is not None and len(whole.items) == 3
    for number, piece in enumerate((b"1", b"2")):
        whole.take(number, piece)
    assert [part.is_finished for part in parts] == [True, False]
    failure = ValueError("no more")
    whole.done(None, failure)
    assert parts[0].finished == [b"1", b"2"]
    assert log == [("a", b"", None), ("b", None, failure)]


def test_a_task_that_was_begun_brings_only_what_is_left_of_it() -> None:
    parts = [_make_task("a", 2.0, 2, []), _make_task("b", 1.0, 1, [])]
    parts[0].take(0, b"1")
    whole = bundle(parts)
    assert whole.items is not None and len(whole.items) == 2
    whole.take(1, b"3")
    whole.take(0, b"2")
    assert [part.finished for part in parts] == [[b"1", b"2"], [b"3"]]


def test_who_has_cancelled_a_part_of_a_bundle_hears_nothing_of_it() -> None:
    log: list[tuple[str, bytes | None, object]] = []
    parts = [_make_task(name, 1.0, 1, log) for name in "abc"]
    whole = bundle(parts)
    parts[1].cancelled = True
    for number, piece in enumerate((b"1", b"2", b"3")):
        whole.take(number, piece)
    whole.done(b"", None)
    assert [name for name, _, _ in log] == ["a", "c"]
    assert parts[2].finished == [b"3"]


def test_the_queue_counts_what_waits_to_be_joined() -> None:
    queue = TaskQueue()
    tasks = [_make_task(str(number), 3.0, 1, []) for number in range(4)]
    queue.push(*tasks)
    assert queue.seconds["choir"] == 12.0
    first = queue.pop(True, False)
    assert first is tasks[0]
    assert queue.pop_more(first, 9.0) == tasks[1:3]
    assert queue.seconds["choir"] == 3.0
    tasks[3].single = True
    assert queue.pop_more(first, 9.0) == []
