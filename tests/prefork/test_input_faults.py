"""Whatever is wrong with an input costs that input alone, with a reason, in whatever process it shows."""

from __future__ import annotations

import os
import struct
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefork import InputError, Job, Runtime
from prefork.engines.base import LoadError
from prefork.pool.pipeline import Intake
from prefork.run.corpus import Corpus, find_jobs
from prefork.run.problems import Problem, attempt, find_reason
from tests.prefork.command import SAMPLES, run, write_job, write_wav

script_engine = pytest.mark.usefixtures("script_engine")
AGAIN = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RECORDINGS = {".wav": "", ".flac": "child15.flac"}  # by suffix: the sample that is damaged, or one that is written


def _find(folder: Path, intake: Intake = Intake.RECORDINGS) -> Corpus:
    return find_jobs(folder, folder / "out", intake=intake)


def _list_ids(corpus: Corpus) -> list[str]:
    return sorted([*(job.id for job in corpus.jobs), *(problem.id for problem in corpus.problems)])


def _write_odd_wav(path: Path, tag: int, bits: int) -> None:
    """A whole WAV file of a second whose format is called by this number."""
    form = struct.pack("<HHIIHH", tag, 1, 16_000, 16_000 * bits // 8, max(1, bits // 8), bits)
    data = bytes(16_000 * bits // 8)
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


@AGAIN
@given(tags=st.lists(st.tuples(st.integers(0, 0xFFFF), st.sampled_from([0, 4, 8, 16, 24, 32])), min_size=1, max_size=9))
@example(tags=[(0x0011, 4), (0x0161, 16), (0x2000, 16), (0x0001, 16)])
def test_every_wav_is_a_job_or_a_problem_whatever_its_format_is_called(
    tmp_path: Path, tags: list[tuple[int, int]]
) -> None:
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    for number, (tag, bits) in enumerate(tags):
        _write_odd_wav(tmp_path / f"{number}.wav", tag, bits)
    corpus = _find(tmp_path)
    assert _list_ids(corpus) == [f"{number}.wav" for number in range(len(tags))]
    assert all(problem.reason for problem in corpus.problems)


@AGAIN
@given(
    suffix=st.sampled_from(sorted(RECORDINGS)),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), max_size=8),
    length=st.floats(0.001, 1.0),
    text=st.binary(max_size=300),
)
def test_every_damaged_input_is_a_job_or_a_problem(
    tmp_path: Path, suffix: str, edits: list[tuple[float, bytes]], length: float, text: bytes
) -> None:
    path = tmp_path / f"a{suffix}"
    if RECORDINGS[suffix]:
        path.write_bytes((SAMPLES / RECORDINGS[suffix]).read_bytes()[:40_000])
    else:
        write_wav(path, 1.0)
    data = bytearray(path.read_bytes())
    for place, piece in edits:
        first = int(place * min(len(data), 200))
        data[first : first + len(piece)] = piece
    path.write_bytes(data[: max(1, int(length * len(data)))])
    (tmp_path / "a.cha").write_bytes(b"@UTF8\n@Begin\n@Media:\t" + text)
    (tmp_path / "b.cha").write_bytes(text)
    try:
        assert {"a.cha", "b.cha"} == set(_list_ids(_find(tmp_path, Intake.PAIRS)))
        assert {"a.cha", "b.cha"} == set(_list_ids(_find(tmp_path, Intake.TEXTS)))
        assert [path.name] == _list_ids(_find(tmp_path))
    finally:
        path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="makes a folder whose files cannot be looked at")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at everything")
def test_a_file_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write_wav(tmp_path / "below" / "a.wav", 0.1)
    write_wav(tmp_path / "b.wav", 0.1)
    (tmp_path / "below").chmod(0o444)
    try:
        corpus = _find(tmp_path)
    finally:
        (tmp_path / "below").chmod(0o755)
    assert [job.id for job in corpus.jobs] == ["b.wav"]
    assert [problem.id for problem in corpus.problems] == ["below/a.wav"]


@script_engine
def test_whatever_is_raised_for_an_input_is_its_problem() -> None:
    from script_faults import KINDS

    def fail(error: Exception) -> None:
        raise error

    for error in KINDS.values():
        if isinstance(error, Exception):
            problem = attempt("a.cha", partial(fail, error))
            assert isinstance(problem, Problem) and problem.id == "a.cha"
            assert type(error).__name__ in problem.reason


def test_what_every_input_would_meet_is_no_problem_of_one() -> None:
    def work() -> None:
        raise LoadError("no model")

    with pytest.raises(LoadError):
        attempt("a.cha", work)
    assert attempt("a.cha", lambda: 1) == 1
    assert find_reason(InputError("a: b; c")) == "a: b; c"


@script_engine
@pytest.mark.parametrize("strategy", ["fork", "server", pytest.param("spawn", marks=pytest.mark.slow)])
def test_whatever_an_engine_raises_in_any_step_costs_its_job_alone(tmp_path: Path, strategy: str) -> None:
    from script_faults import KINDS, STEPS

    jobs: list[Job] = []
    for step in STEPS:
        if strategy == "server" and step == "estimate":  # only who has the model is asked
            continue
        jobs += [write_job(tmp_path, f"{step}-{kind}", f"{step} {kind}", "say more") for kind in KINDS]
    odd = ["odd endless", "odd piece", "odd foreign", "odd tensors"]
    jobs += [write_job(tmp_path, order.replace(" ", "-"), order, "say more") for order in odd]
    jobs += [write_job(tmp_path, f"good{number}", "say one", "say two") for number in range(3)]
    with Runtime("thrower", workers=2, strategy=strategy) as runtime:
        results = {result.job.id: result for result in runtime.map(jobs)}
        assert runtime.supervisor.failure is None
    assert sorted(results) == sorted(job.id for job in jobs)
    done = {id for id, result in results.items() if result.error is None}
    assert done - {"odd-foreign.txt"} == {"good0.txt", "good1.txt", "good2.txt"}
    for id, result in results.items():
        kind = id.partition(".")[0].partition("-")[2]
        if result.error is not None and kind in KINDS:
            assert type(KINDS[kind]).__name__ in find_reason(result.error), id


@pytest.mark.slow
def test_a_recording_in_a_codec_that_cannot_be_decoded_costs_its_job_alone(shared: Path, tmp_path: Path) -> None:
    done = run("align", shared / "cases/faults/unknown-codec", tmp_path / "out", "--workers", 1)
    assert done.returncode == 1
    assert "2 done, 1 failed" in done.stdout
    assert "odd.mkv has audio in a codec that FFmpeg cannot decode; convert it" in done.stdout
