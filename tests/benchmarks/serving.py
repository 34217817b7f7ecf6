"""The model server against forked workers, and what it does when it is disturbed: `python tests/benchmarks/serving.py
[NAME ...] [--rounds N]`.

Real speech and real weights from ../shared. Every figure is taken beside what it is compared with, in the same run.
Without names, all are measured (about half an hour on two cores).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT_ENGINE = ROOT / "tests" / "data" / "script_engine"
sys.path[:0] = [str(ROOT), str(SCRIPT_ENGINE)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(SCRIPT_ENGINE), os.environ.get("PYTHONPATH", "")])

from prefork import Job, Runtime  # noqa: E402
from prefork.engines.batching import Batching  # noqa: E402  the script engine has to be where Python looks first
from prefork.engines.text.formats import render  # noqa: E402
from prefork.pool.pipeline import Intake, Pipeline, Stage, align, transcribe  # noqa: E402
from prefork.run.corpus import find_jobs  # noqa: E402
from tests.benchmarks.results import Results  # noqa: E402

SHARED = ROOT.parent / "shared"
SPEECH = SHARED / "data" / "speech"
WHISPER = str(SHARED / "models" / "whisper-tiny.en")
KILLS = 20
_rounds = 3
Row = tuple[str, str]


def compare_align() -> Iterator[Row]:
    """20 transcripts of 21 minutes, with the embedded aligner."""
    jobs = [job for job in find_jobs(SPEECH, None).jobs if "untimed" not in job.id]
    yield from _compare("align", align(utr="off"), jobs, batch_sizes=(4,))


def compare_transcribe() -> Iterator[Row]:
    """The same recordings, with whisper-tiny.en."""
    jobs = [job for job in find_jobs(SPEECH, None, intake=Intake.RECORDINGS).jobs if "untimed" not in job.id]
    yield from _compare("transcribe", transcribe(model=WHISPER), jobs)


def _compare(name: str, pipeline: Pipeline, jobs: Sequence[Job], batch_sizes: Sequence[int] = ()) -> Iterator[Row]:
    """Speed without loading, memory of all processes at its most, in turns; and whether the outputs are the same."""
    ways: dict[str, dict[str, Any]] = {
        "fork, 2 workers": {"strategy": "fork"},
        "server, 2 workers": {"strategy": "server"},
    }
    for size in batch_sizes:
        ways[f"server, 2 workers, batches of {size}"] = {"strategy": "server", "batching": Batching(batch_size=size)}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    totals: dict[str, list[int]] = {way: [] for way in ways}
    outputs: dict[str, dict[str, str]] = {}
    for _ in range(_rounds):
        for way, options in ways.items():
            with Runtime(pipeline, workers=2, **options) as runtime:
                began = time.perf_counter()
                outputs[way] = _collect(runtime, jobs)
                speeds[way].append(sum(job.seconds for job in jobs) / (time.perf_counter() - began))
            totals[way].append(runtime.supervisor.governor.tally.most)
    first = next(iter(ways))
    for way in ways:
        speed, total = statistics.median(speeds[way]), statistics.median(totals[way])
        ratio = statistics.median(a / b for a, b in zip(speeds[way], speeds[first], strict=True))
        yield f"{name}, {way}", f"{speed:.1f} audio s/s ({ratio:.2f} x), PSS of all {total / 1e6:.0f} MB"
        same = sum(outputs[way][job] == outputs[first][job] for job in outputs[first])
        yield "  the same as forked, byte for byte", f"{same} of {len(outputs[first])}"


def _collect(runtime: Runtime, jobs: Sequence[Job]) -> dict[str, str]:
    """What came of each job, as JSON."""
    results = {result.job.id: result for result in runtime.map(jobs)}
    failed = {name: str(result.error) for name, result in results.items() if result.error}
    assert not failed, failed
    return {name: render(r.document, "json") for name, r in sorted(results.items()) if r.document}


def measure_kills() -> Iterator[Row]:
    """The server is killed in the middle of a batch, again and again, while the 14 shortest recordings are written."""
    jobs = [job for job in find_jobs(SPEECH, None, intake=Intake.RECORDINGS).jobs if "untimed" not in job.id]
    jobs = sorted(jobs, key=lambda job: job.seconds)[:14]
    pipeline = transcribe(model=WHISPER)
    with Runtime(pipeline, workers=2, strategy="server", notice=lambda _: None) as runtime:
        quiet = _collect(runtime, jobs)
    with Runtime(pipeline, workers=2, strategy="server", notice=lambda _: None) as runtime:
        began = time.perf_counter()
        with _killing(runtime) as killed:
            outputs = _collect(runtime, jobs)
        took = time.perf_counter() - began
    same = sum(outputs[name] == quiet[name] for name in quiet)
    yield f"transcribe, server killed {len(killed)} times at a batch", f"{took:.0f} s, {len(outputs)} files"
    yield "  the same as undisturbed, byte for byte", f"{same} of {len(quiet)}"


@contextmanager
def _killing(runtime: Runtime) -> Iterator[list[int]]:
    """Kills the server in the middle of a batch, but none before it has done one: else nothing would ever be done."""
    killed: list[int] = []
    seen: dict[int, set[int]] = {}
    ended = threading.Event()
    generator = random.Random(0)

    def kill() -> None:
        while not ended.wait(0.05) and len(killed) < KILLS:
            pool, pid = runtime.supervisor.pool, runtime.supervisor.list_pids().get("server", 0)
            servers = pool.models.servers if pool is not None else None
            server = servers.all[0] if servers is not None else None
            if server is None or not pid or pid in killed:
                continue
            batches = seen.setdefault(pid, set())
            batches |= set(server.running.copy())
            if len(batches) < 2 or not server.running:
                continue
            time.sleep(generator.uniform(0.0, 1.0))
            if not ended.is_set() and server.running:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def measure_starvation() -> Iterator[Row]:
    """Out of memory in chosen batches: whenever more than so many segments meet in one with a certain other."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [_write(Path(folder), number) for number in range(200)]
        notices: list[str] = []
        pipeline = (Stage("faulty"),)
        with Runtime(pipeline, workers=4, strategy="fork") as runtime:
            forked = _read(runtime, jobs)
        batching = Batching(batch_size=16)
        with Runtime(pipeline, workers=4, strategy="server", batching=batching, notice=notices.append) as runtime:
            served = _read(runtime, jobs)
    halved = sum("half the size" in notice for notice in notices)
    same = sum(served[name] == forked[name] for name in forked)
    yield f"1,000 segments in batches of 16, out of memory in {halved}", f"{len(served)} of {len(jobs)} files"
    yield "  the same as with forked workers", f"{same} of {len(forked)}"


def _write(folder: Path, number: int) -> Job:
    path = folder / f"{number:03}.txt"
    lines = [f"say {'x' * (number % 7 + line)}" for line in range(5)]
    if number in (50, 120):
        lines[2] = f"model starve {8 if number == 50 else 2}"
    path.write_text("\n".join(lines))
    return Job(path.name, path, seconds=5.0)


def _read(runtime: Runtime, jobs: Sequence[Job]) -> dict[str, list[tuple[str, float | None]]]:
    results = [result for result in runtime.map(jobs) if result.document]
    return {r.job.id: [(u.text, u.words[0].end) for u in r.document.utterances] for r in results if r.document}


MEASURES: dict[str, Callable[[], Iterator[Row]]] = {
    "align": compare_align,
    "transcribe": compare_transcribe,
    "kills": measure_kills,
    "starvation": measure_starvation,
}


def main() -> None:
    global _rounds
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--rounds", type=int, default=_rounds, help="of comparisons, of which the median counts")
    arguments = parser.parse_args()
    _rounds = arguments.rounds
    names = arguments.names or list(MEASURES)
    with Results() as results:
        for name in names:
            table = results.add_table("what", "figure", title=name)
            for row in MEASURES[name]():
                table.add(*row)


if __name__ == "__main__":
    main()
