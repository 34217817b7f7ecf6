"""How many utterances without times are found, how exactly, and at what cost: python tests/benchmarks/recovery.py

On ../shared/data/speech, 21 minutes of adults and children who speak English as a foreign language. The model runs over
the 20 recordings once; an hour is made by repeating their emissions in other orders, so that only `join` is measured
on it. In the hour, a fifth of the recordings has no transcript, and sentences that nobody says
(../shared/data/ud-english-ewt) stand after a quarter of the others.

The prices of the search were chosen on these same recordings, so these figures are no independent test of them.

truth.json has the times at which the recordings were put together from files that begin and end with silence; `speech`
is within them the first and the last 20 ms whose energy is within 25 dB of the utterance's loud ones.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.alignment.word_matching import WordMatcher
from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.engines.base import Job, Segment
from prefork.engines.ctc.recovery import CTCRecovery, Emission
from prefork.engines.text import formats
from prefork.engines.text.document import Document, Timing, Utterance, Word
from tests.benchmarks.results import Results

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SPEECH = SHARED / "data" / "speech"
NEAR = 0.5  # seconds
FRAME = 0.02  # seconds, of the embedded model


@dataclass(frozen=True, slots=True)
class Truth:
    """Where an utterance is, seconds: as truth.json has it, and the speech within it."""

    start: float
    end: float
    speech_start: float
    speech_end: float


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording with its untimed transcript and what the model made of it."""

    job: Job
    document: Document
    truths: tuple[Truth, ...]
    segments: tuple[Segment, ...]
    pieces: tuple[Emission, ...]


@torch.inference_mode()
def read_recording(engine: CTCRecovery, model: Any, name: str, utterances: Sequence[dict[str, Any]]) -> Recording:
    media = SPEECH / f"{name}.flac"
    samples = read_audio(media, 0, float("inf"))
    job = Job(name, SPEECH / "untimed" / f"{name}.cha", media, seconds=len(samples) / SAMPLE_RATE)
    document = formats.read(job.source)
    # All characters, so that another recording's transcript can be looked for in the same emissions.
    alphabet = Utterance("", (Word("abcdefghijklmnopqrstuvwxyz'"),))
    segments = engine.split(job, Document((*document.utterances, alphabet)))
    pieces = []
    for segment in segments:
        (output,) = engine.infer(model, [engine.prepare(job, segment)])
        pieces.append(engine.finish(job, segment, output))
    truths = tuple(find_speech(samples, u["start_ms"] / 1000, u["end_ms"] / 1000) for u in utterances)
    return Recording(job, document, truths, tuple(segments), tuple(pieces))


def find_speech(samples: Any, start: float, end: float) -> Truth:
    step = SAMPLE_RATE // 50
    part = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    frames = part[: len(part) // step * step].reshape(-1, step)
    energy = 10 * np.log10((frames**2).mean(axis=1) + 1e-9)
    loud = np.flatnonzero(energy > np.percentile(energy, 95) - 25)
    return Truth(start, end, start + loud[0] / 50, start + (loud[-1] + 1) / 50)


def assemble(recordings: Sequence[Recording], seed: int, false_texts: Sequence[str]) -> tuple[Recording, list[bool]]:
    """One recording of all of these. A fifth of them has no transcript; where there are false texts, six of them stand
    after a quarter of the others. Also: which of the utterances are said."""
    chance = random.Random(seed)
    utterances: list[Utterance] = []
    truths: list[Truth] = []
    said: list[bool] = []
    segments: list[Segment] = []
    pieces: list[Emission] = []
    frames = 0
    for recording in recordings:
        if chance.random() >= 0.2:
            utterances += recording.document.utterances
            truths += [shift(truth, frames * FRAME) for truth in recording.truths]
            said += [True] * len(recording.truths)
            if false_texts and chance.random() < 0.25:
                utterances += [make_utterance(chance.choice(false_texts)) for _ in range(6)]
                truths += [Truth(0, 0, 0, 0)] * 6
                said += [False] * 6
        for segment, piece in zip(recording.segments, recording.pieces, strict=True):
            content = replace(segment.content, first=segment.content.first + frames)
            segments.append(Segment(len(segments), segment.start, segment.end, content))
            pieces.append(piece)
        frames += math.ceil(recording.job.seconds / FRAME)
    job = Job("joined", Path("joined.cha"), Path("joined.flac"), seconds=frames * FRAME)
    joined = Recording(job, Document(tuple(utterances)), tuple(truths), tuple(segments), tuple(pieces))
    return joined, said


def shift(truth: Truth, seconds: float) -> Truth:
    return Truth(*(time + seconds for time in (truth.start, truth.end, truth.speech_start, truth.speech_end)))


def make_utterance(text: str) -> Utterance:
    return Utterance(text, tuple(Word(word) for word in text.split()))


def read_false_texts() -> list[str]:
    lines = (SHARED / "data" / "ud-english-ewt" / "en_ewt-ud-dev.conllu").read_text(encoding="utf-8").splitlines()
    texts = [line.removeprefix("# text = ") for line in lines if line.startswith("# text = ")]
    return [text for text in texts if 20 <= len(text) <= 60]


def describe_row(name: str, seconds: float, found: Sequence[Utterance], truths: Sequence[Truth]) -> Iterator[str]:
    """Of the utterances that are said: those found, and the shares of all whose start and end are near."""
    pairs = [(u, t) for u, t in zip(found, truths, strict=True) if u.start is not None and u.end is not None]
    errors = {
        "speech start": [abs(u.start - t.speech_start) for u, t in pairs if u.start is not None],
        "speech end": [abs(u.end - t.speech_end) for u, t in pairs if u.end is not None],
        "truth start": [abs(u.start - t.start) for u, t in pairs if u.start is not None],
        "truth end": [abs(u.end - t.end) for u, t in pairs if u.end is not None],
    }
    yield f"{name}: {seconds:.0f} s, {len(truths)} utterances that are said, {len(pairs)} found"
    for edge, values in errors.items():
        near = sum(value <= NEAR for value in values) / max(1, len(truths))
        yield f"    {edge:13} within {NEAR} s: {near:6.1%}   median error {statistics.median(values or [0]):.3f} s"


def count_timed(utterances: Sequence[Utterance]) -> int:
    return sum(u.start is not None for u in utterances)


def measure_joined(
    engine: CTCRecovery, recordings: Sequence[Recording], rounds: int, false_texts: Sequence[str]
) -> Iterator[str]:
    chance = random.Random(rounds)
    order = [recording for _ in range(rounds) for recording in chance.sample(recordings, len(recordings))]
    joined, said = assemble(order, rounds, false_texts)
    begin = time.perf_counter()
    document = engine.join(joined.job, joined.document, joined.segments, joined.pieces)
    took = time.perf_counter() - begin
    tracemalloc.start()  # in a second run: it makes the first one slower
    engine.join(joined.job, joined.document, joined.segments, joined.pieces)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    right = [(u, t) for u, t, is_said in zip(document.utterances, joined.truths, said, strict=True) if is_said]
    yield from describe_row(f"{rounds} x 21 min joined", joined.job.seconds, *zip(*right, strict=True))
    false = [u for u, is_said in zip(document.utterances, said, strict=True) if not is_said]
    yield f"    nobody says {len(false)}, {count_timed(false)} of them got times; {took:.1f} s, {peak / 2**20:.0f} MiB"


def measure_wrong(engine: CTCRecovery, recordings: Sequence[Recording]) -> Iterator[str]:
    wrong, given = 0, 0
    for shift_by in (3, 7, 11):
        for index, recording in enumerate(recordings):
            other = recordings[(index + shift_by) % len(recordings)].document
            document = engine.join(recording.job, other, recording.segments, recording.pieces)
            wrong, given = wrong + len(document.utterances), given + count_timed(document.utterances)
    yield f"transcripts of another recording: {given} of {wrong} utterances got times"
    half = len(recordings) // 2
    silent, _ = assemble(recordings[:half], 0, ())
    texts = tuple(u for recording in recordings[half:] for u in recording.document.utterances)
    document = engine.join(silent.job, Document(texts), silent.segments, silent.pieces)
    yield f"the transcript of one half, the recording of the other: {count_timed(document.utterances)} of {len(texts)}"


def measure_matched(recordings: Sequence[Recording]) -> Iterator[str]:
    """The truth as a recogniser would hear it that gets every fifth word wrong."""
    chance = random.Random(5)
    matcher = WordMatcher()
    found: list[Utterance] = []
    wrong, given = 0, 0
    for index, recording in enumerate(recordings):
        heard: list[Word] = []
        for utterance, truth in zip(recording.document.utterances, recording.truths, strict=True):
            step = (truth.speech_end - truth.speech_start) / len(utterance.words)
            for i, word in enumerate(utterance.words):
                text = word.text if chance.random() < 0.8 else chance.choice(["the", "um", "tree", "seven"])
                start = truth.speech_start + i * step
                heard.append(Word(text, start, start + step, None, Timing.ATTENTION))
        document = matcher.join(recording.job, replace(recording.document, heard=tuple(heard)), (), ())
        found += document.utterances
        other = recordings[(index + 7) % len(recordings)].document
        document = matcher.join(recording.job, replace(other, heard=tuple(heard)), (), ())
        wrong, given = wrong + len(document.utterances), given + count_timed(document.utterances)
    yield from describe_row("words heard, 20 % wrong", 0, found, [truth for r in recordings for truth in r.truths])
    yield f"    of another recording's transcript, {given} of {wrong} utterances got times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or a hub id; by default the embedded one")
    parser.add_argument("--rounds", type=int, nargs="*", default=[1, 3], help="how often the 21 minutes are joined")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = CTCRecovery(model=options.model)
    engine.setup()
    model = engine.load()
    truth = json.loads((SPEECH / "truth.json").read_text(encoding="utf-8"))
    recordings = [read_recording(engine, model, name, truth[name]["utterances"]) for name in sorted(truth)]
    pieces = [piece for recording in recordings for piece in recording.pieces]
    with Results() as results:
        results.note(f"pieces: {statistics.mean(len(piece.scores) for piece in pieces) / 1000:.1f} kB on average")
        for line in measure_all(engine, recordings, options.rounds):
            results.note(line)


def measure_all(engine: CTCRecovery, recordings: Sequence[Recording], rounds: Sequence[int]) -> Iterator[str]:
    found = [u for r in recordings for u in engine.join(r.job, r.document, r.segments, r.pieces).utterances]
    total = sum(recording.job.seconds for recording in recordings)
    yield from describe_row("20 recordings", total, found, [truth for r in recordings for truth in r.truths])
    for count in rounds:
        yield from measure_joined(engine, recordings, count, read_false_texts())
    yield from measure_wrong(engine, recordings)
    yield from measure_matched(recordings)


if __name__ == "__main__":
    main()
