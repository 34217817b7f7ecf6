"""What whole commands take, on real speech and real weights: `python tests/benchmarks/commands.py [NAME ...]`.

Everything comes from ../shared: whisper-tiny.en and the 20 recordings of data/speech. Every figure is taken beside what
it is compared with, in the same run. Without names, all are measured (about twenty minutes on two cores).
"""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import prefork.pool.requests
from prefork import Runtime
from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.memory.probe import measure_memory
from prefork.pool.pipeline import Intake, transcribe
from prefork.run.corpus import find_jobs
from tests.benchmarks.results import Results
from tests.engines.audio_files import make_distinct
from tests.prefork.command import read_outputs, run

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SPEECH = SHARED / "data" / "speech"
WHISPER = SHARED / "models" / "whisper-tiny.en"
NEAR = 0.5  # seconds
Row = tuple[str, str]


def measure_workers() -> Iterator[Row]:
    """The same text from one worker and from two, and what the second one is worth."""
    with tempfile.TemporaryDirectory() as folder:
        outputs, speeds = [], []
        for workers in (1, 2):
            target = Path(folder) / str(workers)
            summary = _run(
                "transcribe", SPEECH, target, "--model", WHISPER, "--workers", workers, "--format", "chat,json"
            )
            outputs.append(read_outputs(target))
            speeds.append(summary["speed"])
            yield f"transcribe, {workers} worker{'s' * (workers > 1)}", f"{summary['speed']:.1f} audio s/s"
            yield (
                "  largest worker, all together",
                f"{summary['private'] / 1e6:.0f} MB, {summary['total'] / 1e6:.0f} MB",
            )
        same = sum(outputs[0][name] == outputs[1][name] for name in outputs[0])
        yield "files that are the same, byte for byte", f"{same} of {len(outputs[0])}"
        yield "two workers against one", f"{speeds[1] / speeds[0]:.2f} x"


def measure_memory_of_four() -> Iterator[Row]:
    """Four workers that transcribe: forked, spawned with one copy of the weights mapped, spawned with a copy each."""
    jobs = find_jobs(SPEECH, None, intake=Intake.RECORDINGS).jobs[-8:]  # the shortest
    totals = {}
    for name, strategy, copies in (("forked", "fork", False), ("mapped", "spawn", False), ("copies", "spawn", True)):
        prefork.pool.requests.make_plan = _fix_copies(copies)
        with Runtime(transcribe(model=str(WHISPER)), workers=4, threads=1, strategy=strategy) as runtime:
            while sum(worker.ready_seconds is not None for worker in runtime.supervisor.status()) < 4:
                time.sleep(0.2)
            failed = [result.error for result in runtime.map(jobs) if result.error is not None]
            assert not failed, failed
            pids = [worker.pid for worker in runtime.supervisor.status()]
            zygote = runtime.supervisor.zygote_pid()
            found = [memory for memory in map(measure_memory, [*pids, *([zygote] if zygote else [])]) if memory]
            private = statistics.median(memory.uss for memory in found[:4])
        totals[name] = sum(memory.pss for memory in found)
        yield f"4 workers, {name}: PSS of all, USS of each", f"{totals[name] / 1e6:.0f} MB, {private / 1e6:.0f} MB"
    yield "forked against copies", f"{totals['forked'] / totals['copies']:.2f} x"


def _fix_copies(copies: bool) -> Any:
    return lambda request: _make_plan(replace(request, copies=copies))


_make_plan = prefork.pool.requests.make_plan


def measure_hour() -> Iterator[Row]:
    """Utterances without times in a recording of an hour, of which a fifth has no transcript; and in one of a minute,
    for its memory. truth.json counts the silence around an utterance; `speech` is within it by energy."""
    random.seed(1)
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (1, 60):
            source = Path(folder) / f"in{minutes}"
            truth = _write_hour(source, minutes * 60.0)
            target = Path(folder) / f"out{minutes}"
            begin = time.perf_counter()
            summary = _run("align", source, target, "--utr", "ctc")
            took = time.perf_counter() - begin
            yield (
                f"align --utr ctc, {minutes} min: time, largest worker",
                f"{took:.0f} s, {summary['private'] / 1e6:.0f} MB",
            )
            if minutes == 60:
                yield from _judge(truth, (target / "talk.cha").read_text())


def _write_hour(folder: Path, seconds: float) -> list[tuple[float, float, float, float]]:
    """A recording of that length with its transcript; where each line of that is, and the speech in it, in seconds."""
    folder.mkdir()
    known = json.loads((SPEECH / "truth.json").read_text())
    samples = {name: read_audio(SPEECH / f"{name}.flac", 0, float("inf")) for name in known}
    lines, truth, position = [], [], 0
    with wave.open(str(folder / "talk.wav"), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        while position < seconds * SAMPLE_RATE:
            for index, name in enumerate(random.sample(sorted(known), len(known))):
                sound = samples[name]
                for utterance in known[name]["utterances"] if index % 5 != 4 else []:
                    start, end = (utterance[edge] / 1000 for edge in ("start_ms", "end_ms"))
                    if position / SAMPLE_RATE + end < seconds:
                        offset = position / SAMPLE_RATE
                        truth.append(
                            (offset + start, offset + end, *(offset + t for t in _find_speech(sound, start, end)))
                        )
                        lines.append(utterance["text"].lower())
                file.writeframes((sound[: int(seconds * SAMPLE_RATE) - position] * 32767).astype("<i2").tobytes())
                position += len(sound)
                if position >= seconds * SAMPLE_RATE:
                    break
    head = "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tPAR Participant\n@ID:\teng|x|PAR|||||Participant|||\n"
    body = "".join(f"*PAR:\t{line} .\n" for line in lines)
    (folder / "talk.cha").write_text(f"{head}@Media:\ttalk, audio\n{body}@End\n")
    return truth


def _find_speech(samples: Any, start: float, end: float) -> tuple[float, float]:
    """The first and the last 20 ms within 25 dB of the loud ones."""
    part = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    size = SAMPLE_RATE // 50
    levels = 10 * np.log10(part[: len(part) // size * size].reshape(-1, size).astype(np.float64).var(axis=1) + 1e-12)
    loud = np.flatnonzero(levels > np.percentile(levels, 95) - 25)
    return start + loud[0] / 50, start + (loud[-1] + 1) / 50


def _judge(truth: list[tuple[float, float, float, float]], text: str) -> Iterator[Row]:
    mains = [line for line in text.splitlines() if line.startswith("*")]
    found = [re.search(r"\x15(\d+)_(\d+)\x15$", line) for line in mains]
    yield "  utterances found", f"{sum(match is not None for match in found)} of {len(truth)}"
    for what, first in (("truth.json", 0), ("speech", 2)):
        for edge in (0, 1):
            off = [abs(int(m[edge + 1]) / 1000 - t[first + edge]) for m, t in zip(found, truth, strict=True) if m]
            share, median = sum(error <= NEAR for error in off) / len(truth), statistics.median(off)
            name = f"  {('starts', 'ends')[edge]} within {NEAR:g} s of {what}, median error"
            yield name, f"{share:.1%}, {median:.2f} s"


def measure_sentences() -> Iterator[Row]:
    """1,000 recordings of one sentence each, 54 minutes: utterances of 1.5 to 4.5 s without times."""
    with tempfile.TemporaryDirectory() as folder:
        source, seconds = Path(folder) / "in", 0.0
        source.mkdir()
        utterances = [
            (name, utterance)
            for name, truth in json.loads((SPEECH / "truth.json").read_text()).items()
            for utterance in truth["utterances"]
            if 1500 <= utterance["end_ms"] - utterance["start_ms"] <= 4500
        ]
        for number in range(1000):
            name, utterance = utterances[number % len(utterances)]
            sound = read_audio(SPEECH / f"{name}.flac", utterance["start_ms"] / 1000, utterance["end_ms"] / 1000)
            sound = make_distinct(sound, number)
            with wave.open(str(source / f"{number:04}.wav"), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes((sound * 32767).astype("<i2").tobytes())
            (source / f"{number:04}.lab").write_text(utterance["text"].lower() + "\n")
            seconds += len(sound) / SAMPLE_RATE
        times = []
        for turn in range(3):
            begin = time.perf_counter()
            summary = _run("align", source, Path(folder) / f"out{turn}", "--cache", "off")
            times.append(time.perf_counter() - begin)
        yield (
            f"1,000 recordings of one sentence, {seconds / 60:.1f} min, median of three",
            f"{statistics.median(times):.1f} s",
        )
        yield "  all together", f"{summary['total'] / 1e6:.0f} MB"


def _run(*arguments: object) -> dict[str, Any]:
    """The summary of a command."""
    done = run(*arguments, "--json", timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


MEASUREMENTS = {
    "workers": measure_workers,
    "four": measure_memory_of_four,
    "hour": measure_hour,
    "sentences": measure_sentences,
}


def main() -> None:
    names = sys.argv[1:] or list(MEASUREMENTS)
    with Results() as results:
        for name in names:
            table = results.add_table("what", "measured", title=name)
            for row in MEASUREMENTS[name]():
                table.add(*row)


if __name__ == "__main__":
    main()
