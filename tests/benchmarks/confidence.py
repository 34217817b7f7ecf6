"""How the warnings of `align` were calibrated, and what they find: python tests/benchmarks/confidence.py
[--voices DIR] [--unheard DIR]

Every word of ../shared/data/speech is left out in turn, and twice another word of that corpus takes its place; of the
voices that tests/data/synthesize_english.py wrote to --voices, three words of each sentence. On these the regression in
engines/ctc/untranscribed.py is fitted; those of --unheard are only looked at.

For the figures that are held out, each recording in turn is left to itself: regression and both thresholds come from
all the others.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.alignment.confidence import LOW_WORD, SURE_SPEECH
from prefork.engines.audio.reader import probe
from prefork.engines.base import Job, Segment, Tensors
from prefork.engines.ctc.aligner import EMBEDDED, CTCAligner
from prefork.engines.ctc.pronunciations import FILE, Pronunciations
from prefork.engines.ctc.untranscribed import EVEN, LIMITS, WEIGHTS, hear_places
from prefork.engines.text import formats
from prefork.engines.text.document import Document, Utterance, Word
from tests.benchmarks.accuracy import SHARED, read_voices
from tests.benchmarks.results import Results, Table

FAULTS = ("none", "another word", "a word less")
MOST_FALSE = 0.04  # of right utterances that a warning names: 5 % are wanted of those that are held out
GOAL = 0.85  # of the faults that are to be found; beyond it a threshold gains little
LOW_WORDS = (0.003, 0.005, 0.01, 0.02, 0.03, 0.05)
_EACH = 3  # words of a synthesised sentence
_STEPS = 100
SMALL = 1e-2  # of the ridge that keeps a regression of cases that can be told apart within bounds

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Spoken:
    """An utterance, and what is heard of its recording. words: as they are said. start, end: seconds."""

    corpus: str
    recording: str
    job: Job
    output: Tensors
    words: tuple[str, ...]
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Case:
    """An utterance with a fault. place: of its word, -1 without a fault. phones: of the word that is left out. scores:
    of the words. measures: (words + 1, 3) of the places."""

    corpus: str
    recording: str
    fault: str
    place: int
    phones: int
    scores: tuple[float, ...]
    measures: Floats


@dataclass(frozen=True, slots=True)
class Calibration:
    """weights: of each measure. even: the evidence at which it is as likely as not. low_word, sure: what is named."""

    weights: Floats
    even: float
    low_word: float
    sure: float

    def names(self, case: Case) -> bool:
        return min(case.scores) < self.low_word or bool(self.names_places(case).any())

    def names_places(self, case: Case) -> np.ndarray[Any, Any]:
        rated: np.ndarray[Any, Any] = rate(case.measures, self.weights, self.even) >= self.sure
        return rated


def read_corpus(engine: CTCAligner, model: Any) -> Iterator[Spoken]:
    for source in sorted((SHARED / "data" / "speech").glob("*.cha")):
        media = source.with_suffix(".flac")
        job = Job(source.stem, source, media, seconds=probe(media).seconds)
        output = hear(engine, model, job)
        for utterance in formats.read(source).utterances:
            assert utterance.start is not None and utterance.end is not None
            words = tuple(word.text for word in utterance.words)
            yield Spoken("speech", job.id, job, output, words, utterance.start, utterance.end)


def read_synthesised(engine: CTCAligner, model: Any, folder: Path) -> Iterator[Spoken]:
    for sentence in read_voices(folder):
        seconds = probe(sentence.media).seconds
        job = Job(sentence.media.stem, sentence.media, sentence.media, seconds=seconds)
        words = tuple(word.text for word in sentence.words)
        yield Spoken(sentence.source, job.id, job, hear(engine, model, job), words, 0.0, seconds)


@torch.inference_mode()
def hear(engine: CTCAligner, model: Any, job: Job) -> Tensors:
    """The whole recording."""
    tensors = engine.prepare(job, Segment(0, 0.0, job.seconds, ()))
    (output,) = engine.infer(model, [tensors])
    return output


def spoil(spoken: Spoken, vocabulary: Sequence[str], rng: random.Random) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Faults, their places, and the words with them."""
    words = spoken.words
    every = spoken.corpus == "speech"
    yield "none", -1, words
    for place in range(len(words)) if every else rng.sample(range(len(words)), min(_EACH, len(words))):
        if len(words) > 1:
            yield "a word less", place, (*words[:place], *words[place + 1 :])
        others = [text for text in vocabulary if text.casefold() != words[place].casefold()]
        for _ in range(2 if every else 1):
            yield "another word", place, (*words[:place], rng.choice(others), *words[place + 1 :])


def align(engine: CTCAligner, spoken: Spoken, words: Sequence[str]) -> tuple[tuple[float, ...], Floats] | None:
    """The words' scores and the places' measures; None if they do not fit."""
    utterance = Utterance(" ".join(words), tuple(map(Word, words)), start=spoken.start, end=spoken.end)
    document = Document((utterance,), languages=("eng",))
    (stretch,) = engine.split(spoken.job, document)[0].content
    segment = Segment(0, 0.0, spoken.job.seconds, (stretch,))
    found = engine.align(stretch, spoken.output, segment)
    if found is None:
        return None
    heard = engine.read_emissions(spoken.output, segment)
    assert heard is not None
    measures = np.array([place.measures for place in hear_places(found, heard, spoken.start, spoken.end)])
    known = {p for i, word in enumerate(found) if not word.phones for p in (i, i + 1)}
    measures[sorted(known)] = 0.0
    scores = [word.score if word.phones and word.score is not None else 1.0 for word in found]
    return tuple(scores), measures


def make_cases(engine: CTCAligner, spoken: Sequence[Spoken], vocabulary: Sequence[str]) -> Iterator[Case]:
    rng = random.Random(1)
    pronunciations = Pronunciations.read(EMBEDDED / FILE)
    for one in spoken:
        for fault, place, words in spoil(one, vocabulary, rng):
            found = align(engine, one, words)
            if found is None or len(found[1]) != len(words) + 1:
                continue
            ways = pronunciations.pronounce(one.words[place]) if place >= 0 else ()
            yield Case(one.corpus, one.recording, fault, place, len(ways[0]) if ways else 0, *found)


def rate(measures: Floats, weights: Floats, even: float) -> Floats:
    evidence = np.minimum(measures, LIMITS) @ weights - even
    probability: Floats = 1 / (1 + np.exp(-evidence))
    return probability


def fit(cases: Sequence[Case]) -> tuple[Floats, float]:
    """A logistic regression, by Newton's method: weights, and the evidence at which either is as likely."""
    right = [case.measures for case in cases if case.fault == "none"]
    less = [case.measures[case.place, None] for case in cases if case.fault == "a word less"]
    rows = np.minimum(np.concatenate(right + less), LIMITS)
    said = np.repeat([0.0, 1.0], [sum(map(len, right)), len(less)])
    weight = np.where(said == 1, 0.5 / said.sum(), 0.5 / (1 - said).sum()) * len(said)
    columns = np.hstack([rows, np.ones((len(rows), 1))])
    found = np.zeros(columns.shape[1])
    for _ in range(_STEPS):
        probability = 1 / (1 + np.exp(-columns @ found))
        gradient = columns.T @ (weight * (said - probability)) - SMALL * found
        curvature = (columns * (weight * probability * (1 - probability))[:, None]).T @ columns
        step = np.linalg.solve(curvature + SMALL * np.eye(len(found)), gradient)
        found += step
        if np.abs(step).max() < 1e-9:
            break
    return found[:-1], -float(found[-1])


def calibrate(cases: Sequence[Case], fitted: Sequence[Case] = ()) -> Calibration:
    """Of the cases, and for the regression of those others too: the thresholds that find the most with few false
    warnings."""
    weights, even = fit([*cases, *fitted])
    best, most = Calibration(weights, even, 0.0, 2.0), -1.0
    lowest = np.array([min(case.scores) for case in cases])
    surest = np.array([rate(case.measures, weights, even).max() for case in cases])
    kinds = [np.array([case.fault == fault for case in cases]) for fault in FAULTS]
    for low_word in LOW_WORDS:
        for sure in np.arange(0.80, 0.999, 0.005):
            named = (lowest < low_word) | (surest >= sure)
            false, *found = (float(named[kind].mean()) for kind in kinds)
            gain = sum(min(share, GOAL) + 0.1 * share for share in found)
            if false <= MOST_FALSE and gain > most:
                best, most = Calibration(weights, even, low_word, round(float(sure), 3)), gain
    return best


def hold_out(cases: Sequence[Case], fitted: Sequence[Case]) -> dict[int, bool]:
    """For each case, by its number, whether it is named by what was calibrated without its recording."""
    named: dict[int, bool] = {}
    for recording in sorted({case.recording for case in cases}):
        found = calibrate([case for case in cases if case.recording != recording], fitted)
        named |= {i: found.names(case) for i, case in enumerate(cases) if case.recording == recording}
    return named


def report(cases: Sequence[Case], shipped: Calibration, held_out: dict[int, bool], table: Table, sizes: Table) -> None:
    for corpus in dict.fromkeys(case.corpus for case in cases):
        for fault in FAULTS:
            some = [(i, case) for i, case in enumerate(cases) if (case.corpus, case.fault) == (corpus, fault)]
            here = [
                bool(shipped.names_places(case)[case.place])
                if fault == "a word less"
                else case.scores[case.place] < shipped.low_word
                or bool(shipped.names_places(case)[case.place : case.place + 2].any())
                for _, case in some
            ]
            table.add(
                corpus,
                fault,
                f"{len(some)}",
                f"{np.mean([shipped.names(case) for _, case in some]):.1%}",
                f"{np.mean(here):.1%}" if fault != "none" else "",
                f"{np.mean([held_out[i] for i, _ in some]):.1%}" if corpus == "speech" else "",
            )
    for phones in range(1, 7):
        some = [
            (i, case)
            for i, case in enumerate(cases)
            if case.corpus == "speech" and case.fault == "a word less" and min(case.phones, 6) == phones
        ]
        sizes.add(
            f"{phones}" + (" and more" if phones == 6 else ""),
            f"{len(some)}",
            f"{np.mean([shipped.names(case) for _, case in some]):.1%}",
            f"{np.mean([held_out[i] for i, _ in some]):.1%}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voices", type=Path, metavar="DIR", help="synthesised sentences to calibrate with")
    parser.add_argument("--unheard", type=Path, metavar="DIR", help="others, to look at")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = CTCAligner()
    engine.setup()
    model = engine.load()
    spoken = list(read_corpus(engine, model))
    vocabulary = sorted({word for one in spoken for word in one.words})
    speech = list(make_cases(engine, spoken, vocabulary))
    voices, unheard = (
        list(make_cases(engine, list(read_synthesised(engine, model, folder)), vocabulary)) if folder else []
        for folder in (arguments.voices, arguments.unheard)
    )
    found = calibrate(speech, voices)
    shipped = Calibration(np.array(WEIGHTS), EVEN, LOW_WORD, SURE_SPEECH)
    with Results() as results:
        table = results.add_table("corpus", "fault", "utterances", "named", "where it is", "named, held out")
        sizes = results.add_table("phones of the word left out", "utterances", "named", "named, held out")
        cases = [*speech, *(replace(case, corpus=f"{case.corpus}, unheard") for case in unheard)]
        report(cases, shipped, hold_out(speech, voices), table, sizes)
        weights = ", ".join(f"{weight:.3f}" for weight in found.weights)
        results.note(f"of all: weights {weights}; even {found.even:.3f}; word {found.low_word}; speech {found.sure}")


if __name__ == "__main__":
    main()
