"""How exact and how fast the CTC aligner is: python tests/benchmarks/accuracy.py [--model PATH] [--threads N]

Accuracy: starts and ends of words, and of phones, against the times of the synthesisers that spoke
../shared/data/aligned-tts and, with --voices DIR, what tests/data/synthesize_english.py wrote there; with --labelled
DIR, against the labels of people, TextGrids beside their recordings, whose words are in the tier --tier. All from
transcripts without times. `--hide N` writes every Nth word of aligned-tts as digits, which the model cannot spell, and
reports on these words and on their neighbours.
Confidence: ../shared/data/speech with a fault in each utterance, and how many of them a warning names.
Speed: ../shared/data/speech, 21 minutes, transcripts with times; each step's seconds, and this process's memory.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.audio.reader import probe
from prefork.engines.base import Job
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.text import formats
from prefork.engines.text.document import Character, Document, Utterance, Word
from tests.benchmarks.results import Results, Table

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
COLUMNS = ("source", "what", "median, ms", "mean, ms", "within 20 ms", "within 50 ms", "within 100 ms", "bias", "worst")
FAULTS = ("none", "another word", "a word less", "times 3 s late")
_ROUNDED = 0.002  # seconds by which synthesisers' times of words and of phones differ
_INTERVAL = re.compile(r'xmin = ([\d.]+)\s*xmax = ([\d.]+)\s*text = "(.*?)"')


@dataclass(frozen=True, slots=True)
class Truth:
    """A word, or a phone, as it was spoken. start, end: seconds. distance: words to the nearest hidden one."""

    text: str
    start: float
    end: float
    distance: int = 0


@dataclass(frozen=True, slots=True)
class Sentence:
    """source: the voice, or whatever the table calls it. phones: of all of it, where they are known."""

    source: str
    media: Path
    words: list[Truth]
    phones: Sequence[Truth] = ()


class Stopwatch:
    """Seconds spent in each of an engine's steps."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def time(self, name: str, step: Any, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = step(*arguments)
        self.seconds[name] += time.perf_counter() - begin
        return result


@torch.inference_mode()
def align(engine: CTCAligner, model: Any, job: Job, watch: Stopwatch, document: Document | None = None) -> Document:
    """document: what to align, by default the job's transcript."""
    document = document or formats.read(job.source)
    pieces = []
    segments = watch.time("split", engine.split, job, document)
    for segment in segments:
        tensors = watch.time("prepare", engine.prepare, job, segment)
        (output,) = watch.time("infer", engine.infer, model, [tensors])
        pieces.append(watch.time("finish", engine.finish, job, segment, output))
    aligned: Document = watch.time("join", engine.join, job, document, segments, pieces)
    return aligned


def read_sentences(hide: int = 0) -> Iterator[Sentence]:
    """aligned-tts; every `hide`th word of the whole set is written as digits, 0 hides none."""
    folder = SHARED / "data" / "aligned-tts"
    count = 0
    for name, words in sorted(json.loads((folder / "words.json").read_text(encoding="utf-8")).items()):
        hidden = [index for index in range(len(words)) if hide and (count + index) % hide == hide // 2]
        count += len(words)
        truths = [
            Truth(
                "42" if index in hidden else word["word"],
                word["start"],
                word["end"],
                min((abs(index - other) for other in hidden), default=len(words)),
            )
            for index, word in enumerate(words)
        ]
        yield Sentence("aligned-tts", folder / f"{name}.flac", truths)


def read_voices(folder: Path) -> Iterator[Sentence]:
    """Those of the folder whose words have times."""
    for path in sorted(folder.glob("*.json")):
        for name, spoken in json.loads(path.read_text(encoding="utf-8")).items():
            if words := _join_parts(spoken.get("words", [])):
                phones = [Truth(*segment) for segment in spoken["segments"] if segment[0]]
                yield Sentence(path.stem, folder / f"{name}.wav", _give_phones(words, phones), phones)


def _join_parts(parts: Sequence[tuple[str, float, float]]) -> list[Truth]:
    """Words as they are written: synthesisers say it 's."""
    words: list[Truth] = []
    for text, start, end in parts:
        if words and (text.startswith("'") or text == "n't"):
            words[-1] = replace(words[-1], text=words[-1].text + text, end=end)
        elif any(character.isalpha() for character in text):
            words.append(Truth(text, start, end))
    return words


def _give_phones(words: Sequence[Truth], phones: Sequence[Truth]) -> list[Truth]:
    """The words with the phones that follow them without a pause and belong to none: festival's ked says an R of its
    own after a last ER, and leaves it out of the word."""
    given = []
    for word, following in zip_longest(words, words[1:]):
        end, limit = word.end, math.inf if following is None else following.start
        for phone in phones:
            if abs(phone.start - end) < _ROUNDED and phone.end < limit + _ROUNDED:
                end = phone.end
        given.append(replace(word, end=end))
    return given


def read_labelled(folder: Path, tier: str) -> Iterator[Sentence]:
    for path in sorted(folder.glob("*.TextGrid")):
        tiers = path.read_text(encoding="utf-8").split("item [")
        found = next((part for part in tiers if f'name = "{tier}"' in part), None)
        if found is None:
            raise SystemExit(f"{path}: it has no tier {tier}; name another with --tier")
        words = [Truth(text, float(start), float(end)) for start, end, text in _INTERVAL.findall(found)]
        yield Sentence(folder.name, path.with_suffix(".wav"), [word for word in words if word.text.strip(" *")])


def align_sentence(engine: CTCAligner, model: Any, sentence: Sentence) -> list[Word]:
    """The words of the sentence, from a transcript without times."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{sentence.media.stem}.txt"
        source.write_text(" ".join(truth.text for truth in sentence.words) + "\n", encoding="utf-8")
        job = Job(source.stem, source, sentence.media, seconds=probe(sentence.media).seconds)
        document = align(engine, model, job, Stopwatch())
    return [word for utterance in document.utterances for word in utterance.words]


def measure_accuracy(engine: CTCAligner, model: Any, sentences: Iterable[Sentence], table: Table) -> None:
    for name, some in groupby(sentences, key=lambda sentence: sentence.source):
        words: list[tuple[Truth, Word | Character]] = []
        phones: list[tuple[Truth, Word | Character]] = []
        for sentence in some:
            aligned = align_sentence(engine, model, sentence)
            words += zip(sentence.words, aligned, strict=True)
            for truth, word in zip(sentence.words, aligned, strict=True):
                said = [phone for phone in sentence.phones if truth.start <= (phone.start + phone.end) / 2 < truth.end]
                if [_name(phone.text) for phone in said] == [_name(phone.text) for phone in word.phones]:
                    phones += zip(said, word.phones, strict=True)
        report(name, "words", words, table)
        if phones:
            report(name, "phones", phones, table)


def _name(phone: str) -> str:
    """Synthesisers and dictionaries do not agree on which of the unstressed vowels it is."""
    return "AX" if phone in ("AH", "IH", "AX") else phone


def measure_hidden(engine: CTCAligner, model: Any, hide: int, table: Table) -> None:
    found: list[tuple[Truth, Word]] = []
    for sentence in read_sentences(hide):
        found += zip(sentence.words, align_sentence(engine, model, sentence), strict=True)
    report("aligned-tts", "hidden words", [pair for pair in found if pair[0].distance == 0], table)
    report("aligned-tts", "their neighbours", [pair for pair in found if pair[0].distance == 1], table)
    report("aligned-tts", "all others", [pair for pair in found if pair[0].distance > 1], table)


def report(source: str, what: str, found: Sequence[tuple[Truth, Word | Character]], table: Table) -> None:
    for edge in ("start", "end"):
        errors = np.array([getattr(word, edge) - getattr(truth, edge) for truth, word in found]) * 1000
        sizes = np.abs(errors)
        within = [f"{np.mean(sizes <= most):.1%}" for most in (20, 50, 100)]
        table.add(
            source,
            f"{len(sizes)} {what}, {edge}s",
            f"{np.median(sizes):.0f}",
            f"{sizes.mean():.1f}",
            *within,
            f"{np.median(errors):+.0f}",
            f"{sizes.max():.0f}",
        )


def measure_confidence(engine: CTCAligner, model: Any, table: Table) -> None:
    """Of the utterances of ../shared/data/speech, the share that a warning names, once in each there is this fault."""
    rng = random.Random(1)
    jobs = [
        Job(source.stem, source, source.with_suffix(".flac"), seconds=probe(source.with_suffix(".flac")).seconds)
        for source in sorted((SHARED / "data" / "speech").glob("*.cha"))
    ]
    documents = {job: formats.read(job.source) for job in jobs}
    vocabulary = sorted({word.text for d in documents.values() for u in d.utterances for word in u.words})
    named: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for job, document in documents.items():
        for fault in FAULTS:
            faulty = [spoil(utterance, fault, vocabulary, rng) for utterance in document.utterances]
            aligned = align(engine, model, job, Stopwatch(), replace(document, utterances=tuple(faulty)))
            found = (re.match(r"utterance \d+", warning) for warning in aligned.warnings)
            named[fault] += len({match[0] for match in found if match})
            total[fault] += sum(bool(utterance.words) for utterance in faulty)
    for fault in FAULTS:
        table.add(fault, f"{total[fault]}", f"{named[fault] / total[fault]:.1%}")


def spoil(utterance: Utterance, fault: str, vocabulary: Sequence[str], rng: random.Random) -> Utterance:
    words, start, end = list(utterance.words), utterance.start, utterance.end
    if not words or start is None or end is None or fault == "none":
        return utterance
    place = rng.randrange(len(words))
    if fault == "another word":
        others = [text for text in vocabulary if text.casefold() != words[place].text.casefold()]
        words[place] = Word(rng.choice(others))
    elif fault == "a word less" and len(words) > 1:
        del words[place]
    elif fault == "times 3 s late":
        start, end = start + 3.0, end + 3.0
    return replace(utterance, words=tuple(words), start=start, end=end)


def measure_speed(engine: CTCAligner, model: Any) -> Iterator[str]:
    watch = Stopwatch()
    seconds, segments = 0.0, 0
    process = psutil.Process()
    before = process.memory_full_info().uss
    begin = time.perf_counter()
    for source in sorted((SHARED / "data" / "speech").glob("*.cha")):
        media = source.with_suffix(".flac")
        job = Job(source.stem, source, media, seconds=probe(media).seconds)
        align(engine, model, job, watch)
        seconds += job.seconds
        segments += len(engine.split(job, formats.read(job.source)))
    wall = time.perf_counter() - begin
    steps = ", ".join(f"{name} {spent:.2f}" for name, spent in watch.seconds.items())
    yield (
        f"{seconds:.0f} s of audio, {segments} segments, in {wall:.1f} s: {seconds / wall:.0f} times as fast ({steps})"
    )
    yield f"bare infer: {seconds / watch.seconds['infer']:.0f} times as fast"
    yield f"private memory: {before >> 20} MiB before, {process.memory_full_info().uss >> 20} MiB after"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; by default the embedded model")
    parser.add_argument("--voices", type=Path, metavar="DIR", help="what synthesize_english.py wrote")
    parser.add_argument("--labelled", type=Path, metavar="DIR", help="recordings with TextGrids")
    parser.add_argument("--tier", default="words", help="of the words in these TextGrids")
    parser.add_argument("--hide", type=int, default=0, metavar="N", help="write every Nth word as digits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-segment", type=float, default=None, metavar="SECONDS")
    parser.add_argument("--only", choices=("accuracy", "confidence", "speed"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = {} if arguments.max_segment is None else {"max_segment": arguments.max_segment}
    engine = CTCAligner(model=arguments.model, **options)
    engine.setup()
    model = engine.load()
    with torch.inference_mode():
        engine.verify(engine.infer(model, [engine.example()])[0])
    with Results() as results:
        if arguments.only in (None, "accuracy") and arguments.hide:
            measure_hidden(engine, model, arguments.hide, results.add_table(*COLUMNS))
        elif arguments.only in (None, "accuracy"):
            voices = read_voices(arguments.voices) if arguments.voices else ()
            labelled = read_labelled(arguments.labelled, arguments.tier) if arguments.labelled else ()
            measure_accuracy(engine, model, chain(read_sentences(), voices, labelled), results.add_table(*COLUMNS))
        if arguments.only in (None, "confidence"):
            measure_confidence(engine, model, results.add_table("fault", "utterances", "named by a warning"))
        for line in measure_speed(engine, model) if arguments.only in (None, "speed") else ():
            results.note(line)


if __name__ == "__main__":
    main()
