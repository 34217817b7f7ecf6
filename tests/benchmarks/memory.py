"""How memory is planned and kept, measured on this machine: `python tests/benchmarks/memory.py [NAME ...]`.

Every figure is taken beside what it is compared with, in the same run. Without names, all are measured (about half an
hour on two cores). Those that need a control group of their own say so and are left out where none can be made.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.memory.memlog import Event, read_log
from tests.benchmarks.results import Results

sys.path.append(str(Path(__file__).parents[2]))
from runtime import PREFORK, Row, big_model, write_jobs  # type: ignore[import-not-found]

from tests.limits import MemoryGroup, NotAllowed

GB = 1 << 30


def write_corpus(folder: Path, lengths: Sequence[float]) -> None:
    """A recording and a transcript without times for each length in seconds: one segment each."""
    folder.mkdir(parents=True)
    for number, seconds in enumerate(lengths):
        (part := folder / f"{number:03}").mkdir()
        write_jobs(part, 1, seconds)


def align(
    source: Path, target: Path, *options: object, group: MemoryGroup | None = None, cache: Path | None = None
) -> tuple[dict[str, Any], subprocess.Popen[str]]:
    """A run in a process of its own; its summary, and the process, which has ended."""
    process = start(source, target, *options, group=group, cache=cache)
    return finish(process), process


def start(
    source: Path, target: Path, *options: object, group: MemoryGroup | None = None, cache: Path | None = None
) -> subprocess.Popen[str]:
    command = [*PREFORK, "align", str(source), str(target), "--json", *map(str, options)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache or target.with_name(f"{target.name}-cache"))}
    return subprocess.Popen(
        group.wrap(command) if group else command, stdout=subprocess.PIPE, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    lines = [json.loads(line) for line in output.splitlines()]
    return next(line for line in lines if line["event"] == "summary")


def list_peaks(target: Path, task: str = "run") -> list[Event]:
    events = read_log(target).events
    return [event for event in events if event.event == "complete" and event.task == task and event.peak]


def measure_limits() -> Iterator[Row]:
    """40 files of 1 to 120 s, six workers, a 95 M wav2vec2: without a limit, in a control group of 3 GB, in one of 3 GB
    that is halved while it runs, and with --memory-limit instead."""
    draw = random.Random(0)
    lengths = [math.exp(draw.uniform(0.0, math.log(120.0))) for _ in range(40)]
    with big_model(size="base") as model, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "in", lengths)
        options = ("--model", model, "--workers", 6, "--threads", 1)
        cases: list[tuple[str, int | None, int | None, tuple[object, ...]]] = [
            ("no limit", None, None, ()),
            ("control group of 3 GB", 3 * GB, None, ()),
            ("3 GB, halved after 30 s", 3 * GB, 3 * GB // 2, ()),
            ("--memory-limit 1.5GiB", None, None, ("--memory-limit", "1.5GiB")),
        ]
        for number, (title, limit, later, more) in enumerate(cases):
            target = folder / f"out{number}"
            try:
                with MemoryGroup(limit) if limit else nullcontext() as group:
                    process = start(folder / "in", target, *options, *more, group=group)
                    if group is not None and later is not None:
                        time.sleep(30)
                        group.squeeze(later, 120)
                    summary = finish(process)
                    kills = group.count_kills() if group else 0
                    used = f", {group.read_peak() / 1e9:.2f} GB in the group" if group else ""
            except NotAllowed as error:
                yield title, f"left out: {error}", ""
                continue
            yield title, describe(summary) + used, ""
            yield f"{title}: processes that the kernel ended", str(kills), "0"


def describe(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['done']} done, {len(summary['failed'])} failed, {summary['speed']:.1f} audio s/s, "
        f"{summary['total'] / 1e9:.2f} GB at most, {summary['throttles']} times short ({summary['throttled']:.0f} s), "
        f"{summary['shrinks']} workers given up, {summary['starved']} tasks lost theirs"
    )


def measure_prediction() -> Iterator[Row]:
    """A mixed corpus twice: how good the second run's predictions are, from what the first has measured."""
    draw = random.Random(1)
    lengths = [math.exp(draw.uniform(0.0, math.log(40.0))) for _ in range(40)]
    with tempfile.TemporaryDirectory() as name, big_model(size="base") as model:
        folder = Path(name)
        write_corpus(folder / "in", lengths)
        for title, options in (("95 M wav2vec2", ("--model", model)), ("embedded model", ())):
            for run in (1, 2):
                target = folder / f"{title}-{run}"
                align(folder / "in", target, "--workers", 2, *options, cache=folder / f"{title}-cache")
                pairs = [(event.predicted or 0, event.peak or 0) for event in list_peaks(target)]
                close = sum(abs(predicted - peak) <= 0.2 * peak for predicted, peak in pairs) / len(pairs)
                below = sum(peak <= predicted for predicted, peak in pairs) / len(pairs)
                figure = f"{close:.0%} within 20 % of what was measured, {below:.0%} no more than predicted"
                yield f"{title}, run {run}: {len(pairs)} tasks", figure, ""


def measure_growth() -> Iterator[Row]:
    """500 files through one worker: its private memory after file 50 and after file 500."""
    draw = random.Random(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "in", [draw.uniform(2.0, 15.0) for _ in range(500)])
        align(folder / "in", folder / "out", "--workers", 1)
        rests = [event.uss or 0 for event in list_peaks(folder / "out")]
    for number in (1, 50, 100, 250, 500):
        yield f"private memory after file {number}", f"{rests[number - 1] / 1e6:.1f} MB", ""
    yield "file 500 against file 50", f"{rests[499] / rests[49]:.2f} x", "1.0 x"


def measure_length() -> Iterator[Row]:
    """One worker's peak for 60 minutes of audio against 1 minute: timed utterances of 5 s, as in a real transcript."""
    with tempfile.TemporaryDirectory() as name, big_model(size="base") as model:
        folder = Path(name)
        for minutes in (1, 60):
            write_timed(folder / f"in{minutes}", minutes)
        for title, options in (("embedded model", ()), ("95 M wav2vec2", ("--model", model))):
            peaks = {}
            for minutes in (1, 20) if options else (1, 60):
                source = folder / f"in{minutes}"
                if not source.exists():
                    write_timed(source, minutes)
                target = folder / f"out-{title}-{minutes}"
                align(source, target, "--workers", 1, *options)
                events = [event for event in read_log(target).events if event.event == "complete"]
                peaks[minutes] = max(event.peak or 0 for event in events)
                yield f"{title}, {minutes} min: peak of the worker's own", f"{peaks[minutes] / 1e6:.1f} MB", ""
            short, long = sorted(peaks)
            yield f"{title}, {long} min against {short}", f"{peaks[long] / peaks[short]:.2f} x", "1.15 x"


def write_timed(folder: Path, minutes: int) -> None:
    """A recording of noise, and a CHAT transcript with an utterance every five seconds."""
    folder.mkdir()
    write_jobs(folder, 1, 60.0 * minutes)
    (folder / "noise0.txt").unlink()
    head = "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tCHI Target_Child\n@ID:\teng|x|CHI|||||Target_Child|||\n"
    lines = [
        f"*CHI:\tone two three . \x15{start * 1000}_{start * 1000 + 4500}\x15\n" for start in range(0, 60 * minutes, 5)
    ]
    (folder / "noise0.cha").write_text(head + "@Media:\tnoise0, audio\n" + "".join(lines) + "@End\n")


MEASURES: dict[str, Callable[[], Iterator[Row]]] = {
    "limits": measure_limits,
    "prediction": measure_prediction,
    "growth": measure_growth,
    "length": measure_length,
}


def main(names: Sequence[str]) -> None:
    with Results() as results:
        for name in names or MEASURES:
            table = results.add_table("what", "measured", "wanted", title=name)
            for row in MEASURES[name]():
                table.add(*row)


if __name__ == "__main__":
    main(sys.argv[1:])
