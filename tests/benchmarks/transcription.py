"""Word error rates of Whisper: python tests/benchmarks/transcription.py [--model PATH] [--only NAME ...] [--no-whole]

jfk.flac and the 20 recordings of ../shared/data/speech, two ways: in the segments that the engine cuts, and whole, by
transformers' own sequential decoding of long audio with the same thresholds. Texts go through Whisper's normaliser for
English. Needs jiwer (pip install jiwer). One thread; about eight minutes for whisper-tiny.en, two without `whole`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import torch
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.audio.reader import SAMPLE_RATE, probe, read_audio
from prefork.engines.base import Job
from prefork.engines.text.document import Document
from prefork.engines.text.formats import read
from prefork.engines.whisper.asr import WhisperASR
from prefork.engines.whisper.decoding import TEMPERATURES
from tests.benchmarks.results import Results

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
JFK = "And so my fellow Americans ask not what your country can do for you ask what you can do for your country"

normalize: Callable[[str], str] = EnglishTextNormalizer({})  # type: ignore[no-untyped-call]


@dataclass
class Score:
    """What one way of transcribing made of all recordings."""

    errors: int = 0
    words: int = 0
    substituted: int = 0
    deleted: int = 0
    inserted: int = 0
    seconds: float = 0.0  # of audio
    spent: float = 0.0  # seconds
    warnings: list[str] = field(default_factory=list)

    def add(self, truth: str, text: str) -> float:
        """The word error rate of one recording."""
        result = jiwer.process_words(normalize(truth), normalize(text))
        words = result.hits + result.substitutions + result.deletions
        errors = result.substitutions + result.deletions + result.insertions
        self.substituted += result.substitutions
        self.deleted += result.deletions
        self.inserted += result.insertions
        self.errors, self.words = self.errors + errors, self.words + words
        return errors / words


def list_recordings() -> list[tuple[Path, str]]:
    """Each with what is said in it."""
    found = [(SHARED / "data" / "jfk.flac", JFK)]
    for path in sorted((SHARED / "data" / "speech").glob("*.cha")):
        words = [word.text for utterance in read(path).utterances for word in utterance.words]
        found.append((path.with_suffix(".flac"), " ".join(words)))
    return found


@torch.inference_mode()
def transcribe(engine: WhisperASR, model: Any, path: Path) -> Document:
    """By the engine's own segments, in this process."""
    job = Job(path.name, path, path, seconds=probe(path).seconds)
    document = Document((), media=path.stem)
    segments = engine.split(job, document)
    pieces = []
    for segment in segments:
        [output] = engine.infer(model, [engine.prepare(job, segment)])
        pieces.append(engine.finish(job, segment, output))
    return engine.join(job, document, segments, pieces)


@torch.inference_mode()
def transcribe_whole(folder: Path, model: Any, tokenizer: Any, path: Path) -> str:
    """By transformers' sequential decoding of 30 s after 30 s, from where the last timestamp was."""
    extractor: Any = WhisperFeatureExtractor.from_pretrained(folder)
    waveform = read_audio(path, 0.0, float("inf"))
    long = len(waveform) > 30 * SAMPLE_RATE
    options: dict[str, Any] = {"truncation": False, "padding": "longest"} if long else {}
    inputs = extractor(waveform, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt", **options)
    torch.manual_seed(0)
    tokens = model.generate(
        inputs.input_features,
        attention_mask=inputs.attention_mask,
        return_timestamps=True,
        condition_on_prev_tokens=False,
        temperature=TEMPERATURES,
        compression_ratio_threshold=2.4,
        logprob_threshold=-1.0,
        no_speech_threshold=0.6,
    )
    text: str = tokenizer.decode(tokens[0], skip_special_tokens=True)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(SHARED / "models" / "whisper-tiny.en"), metavar="PATH")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="recordings, by the beginning of their names")
    parser.add_argument("--no-whole", action="store_true", help="leave the comparison out")
    parser.add_argument("--text", action="store_true", help="show what was heard")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = WhisperASR(arguments.model)
    engine.setup()
    model = engine.load()
    tokenizer = engine._checkpoint.tokenizer

    def by_segments(path: Path) -> str:
        document = transcribe(engine, model, path)
        ways["segments"].warnings += [f"{path.stem}: {warning}" for warning in document.warnings]
        return " ".join(word.text for word in document.heard)

    def whole(path: Path) -> str:
        return transcribe_whole(Path(arguments.model), model, tokenizer, path)

    ways = {"segments": Score()} | ({} if arguments.no_whole else {"whole": Score()})
    functions: dict[str, Callable[[Path], str]] = {"segments": by_segments, "whole": whole}
    recordings = [r for r in list_recordings() if not arguments.only or r[0].stem.startswith(tuple(arguments.only))]
    with Results() as results:
        table = results.add_table("recording", *(f"{name} (WER)" for name in ways))
        for path, truth in recordings:
            table.add(path.stem, *measure(path, truth, ways, functions, arguments.text))
        table.add("all", *(f"{score.errors / score.words:.1%}" for score in ways.values()))
        table.add("sub/del/ins", *(f"{score.substituted}/{score.deleted}/{score.inserted}" for score in ways.values()))
        table.add("audio s per s", *(f"{score.seconds / score.spent:.1f}" for score in ways.values()))
        for warning in ways["segments"].warnings:
            results.note(warning)


def measure(
    path: Path, truth: str, ways: dict[str, Score], functions: dict[str, Callable[[Path], str]], show: bool
) -> Sequence[str]:
    """The recording's word error rate each way."""
    rates = []
    for name, score in ways.items():
        begin = time.perf_counter()
        text = functions[name](path)
        score.spent += time.perf_counter() - begin
        score.seconds += probe(path).seconds
        rates.append(f"{score.add(truth, text):.1%}")
        if show:
            print(f"{path.stem} {name}: {text}")
    return rates


if __name__ == "__main__":
    main()
