"""Recognition with whisper-tiny.en's real weights on real speech, and on what is none."""

from __future__ import annotations

import dataclasses
import pickle
import wave
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.engines.base import Engine, InputError, Job, LoadError, Segment
from prefork.engines.text.document import Document, Utterance, Word
from prefork.engines.whisper.asr import Heard, LanguageDetector, WhisperASR, WindowSettings, join_heard

pytestmark = pytest.mark.dependencies

JFK = [
    "and",
    "so",
    "my",
    "fellow",
    "americans",
    "ask",
    "not",
    "what",
    "your",
    "country",
    "can",
    "do",
    "for",
    "you",
    "ask",
    "what",
    "you",
    "can",
    "do",
    "for",
    "your",
    "country",
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps of one token are too small to share; on a busy machine, threads that wait for one another take longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(shared: Path) -> str:
    return str(shared / "models" / "whisper-tiny.en")


@pytest.fixture(scope="module")
def engine(folder: str) -> WhisperASR:
    engine = WhisperASR(folder)
    engine.setup()
    return engine


@pytest.fixture(scope="module")
def model(engine: WhisperASR) -> Any:
    return engine.load()


@pytest.fixture(scope="module")
def speech(shared: Path) -> Any:
    return read_audio(shared / "data" / "jfk.flac", 0.0, 30.0)


def write_job(folder: Path, samples: Any, name: str = "talk") -> Job:
    media = folder / f"{name}.wav"
    with wave.open(str(media), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return Job(media.name, media, media, seconds=len(samples) / SAMPLE_RATE)


@torch.inference_mode()
def run(engine: Engine, model: Any, job: Job, document: Document | None = None) -> Document:
    document = document or Document((), media="talk")
    segments = engine.split(job, document)
    outputs = [engine.infer(model, [engine.prepare(job, segment)])[0] for segment in segments]
    pieces = [engine.finish(job, segment, output) for segment, output in zip(segments, outputs, strict=True)]
    return engine.join(job, document, segments, pieces)


def spell(words: Sequence[Word]) -> list[str]:
    return ["".join(c for c in word.text.lower() if c.isalnum() or c == "'") for word in words]


def test_speech_is_heard_with_its_times(engine: WhisperASR, model: Any, speech: Any, tmp_path: Path) -> None:
    document = run(engine, model, write_job(tmp_path, speech))
    assert spell(document.heard) == JFK
    assert document.languages == ("eng",)
    assert document.seconds == pytest.approx(11.0)
    assert document.warnings == ()
    ask = [word.start for word in document.heard if word.text.lower() == "ask"]
    assert ask == [pytest.approx(3.26, abs=0.15), pytest.approx(8.16, abs=0.15)]  # where the pauses end
    for last, word in pairwise(document.heard):
        assert last.start is not None and last.end is not None and word.start is not None
        assert last.start <= last.end <= word.start


def test_long_pause_is_left_out_and_times_are_those_of_the_recording(
    engine: WhisperASR, model: Any, speech: Any, tmp_path: Path
) -> None:
    noise = 0.001 * np.random.default_rng(0).standard_normal(25 * SAMPLE_RATE)
    job = write_job(tmp_path, np.concatenate([speech, noise, speech]))
    assert [(round(s.start), round(s.end)) for s in engine.split(job, Document(()))] == [(0, 11), (36, 47)]
    document = run(engine, model, job)
    assert spell(document.heard) == JFK * 2
    starts = [word.start or 0.0 for word in document.heard]
    assert starts[len(JFK)] == pytest.approx(starts[0] + 36.0, abs=0.5)


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(8 * SAMPLE_RATE),
        0.05 * np.random.default_rng(0).standard_normal(8 * SAMPLE_RATE),
        0.05 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE),
        0.3 * np.sin(np.arange(8 * SAMPLE_RATE) * 2 * np.pi * 440 / SAMPLE_RATE),
        np.zeros(1),
    ],
    ids=["silence", "noise", "short noise", "tone", "one sample"],
)
def test_no_words_are_made_up(engine: WhisperASR, model: Any, sound: Any, tmp_path: Path) -> None:
    document = run(engine, model, write_job(tmp_path, sound))
    assert document.heard == ()
    assert document.warnings == ("no speech found",)


def test_fifth_of_a_second_is_no_word(engine: WhisperASR, model: Any, speech: Any, tmp_path: Path) -> None:
    assert run(engine, model, write_job(tmp_path, speech[:3200])).heard == ()


def test_result_does_not_depend_on_who_shares_the_batch(
    engine: WhisperASR, model: Any, speech: Any, tmp_path: Path
) -> None:
    noise = 0.3 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE)
    jobs = [write_job(tmp_path, sound, name) for name, sound in (("a", noise), ("b", speech[: 4 * SAMPLE_RATE]))]
    prepared = [engine.prepare(job, Segment(0, 0.0, job.seconds, WindowSettings("en"))) for job in jobs]
    with torch.inference_mode():
        together, [alone] = engine.infer(model, prepared)[1], engine.infer(model, prepared[1:])
    assert all(torch.equal(together[key], alone[key]) for key in alone)


def test_what_crosses_the_socket_is_small(engine: WhisperASR, speech: Any, tmp_path: Path) -> None:
    [segment] = engine.split(write_job(tmp_path, speech), Document(()))
    assert len(pickle.dumps(segment)) < 400
    words = tuple(Word("word", i / 2, i / 2 + 0.4, 0.5) for i in range(60))
    assert len(pickle.dumps(Heard(words, False, (("eng", 0.9),) * 5))) < 10_000


def test_what_cannot_be_made_out_is_marked(engine: WhisperASR, speech: Any, tmp_path: Path) -> None:
    job = write_job(tmp_path, speech)
    [segment] = engine.split(job, Document(()))
    output = {
        "text": torch.zeros(0, dtype=torch.long),
        "failed": torch.tensor(100),
        "attention": torch.zeros(2, 550),
        "log_probs": torch.zeros(1),
        "language": torch.tensor(-1),
        "languages": torch.zeros(0),
        "quiet": torch.zeros(550, dtype=torch.bool),
    }
    piece = engine.finish(job, segment, output)
    [word] = piece.words
    assert (word.text, word.start, word.end) == ("xxx", 2.0, segment.end)
    document = engine.join(job, Document(()), [segment], [piece])
    assert document.warnings == ("the speech at 0 to 11 s could not be recognised",)


def test_words_of_overlapping_segments_are_there_once() -> None:
    segments = [Segment(0, 0.0, 28.0, WindowSettings()), Segment(1, 23.0, 40.0, WindowSettings(overlap=5.0))]
    first = [Word(text, 24.0 + i, 25.0 + i) for i, text in enumerate(["one", "two", "three", "four"])]
    second = [Word(text, 24.1 + i, 25.0 + i) for i, text in enumerate(["one", "two", "three", "four", "five"])]
    heard = join_heard(segments, [Heard(tuple(first)), Heard(tuple(second))])
    assert [word.text for word in heard] == ["one", "two", "three", "four", "five"]


def make_transcript(*starts: float | None) -> Document:
    words = (Word("hello"),)
    return Document(tuple(Utterance("hello .", words, "PAR", start, start and start + 1) for start in starts))


def test_transcript_stays_as_it_is(engine: WhisperASR, model: Any, speech: Any, tmp_path: Path) -> None:
    transcript = make_transcript(1.0, None)
    document = run(engine, model, write_job(tmp_path, speech[: 3 * SAMPLE_RATE]), transcript)
    assert document.utterances == transcript.utterances
    assert document.heard


def test_transcript_with_times_needs_no_recognition(folder: str, speech: Any, tmp_path: Path) -> None:
    engine = WhisperASR(folder, only_untimed=True)
    engine.setup()
    job = write_job(tmp_path, speech)
    timed, partly = make_transcript(1.0, 2.0), make_transcript(1.0, None)
    assert engine.split(job, timed) == []
    assert engine.join(job, timed, [], []) == timed
    assert len(engine.split(job, partly)) == 1


def test_english_checkpoint_refuses_another_language(folder: str, engine: WhisperASR, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="it knows only English, not 'deu'"):
        WhisperASR(folder, language="deu").setup()
    job = write_job(tmp_path, np.zeros(100))
    with pytest.raises(InputError, match="it knows only English, not 'deu'"):
        engine.split(job, Document((), languages=("deu",)))
    assert engine.split(job, Document((), languages=("deu", "eng"))) == []
    for language in ("eng", "en"):
        WhisperASR(folder, language=language).setup()


def test_bad_options_are_refused() -> None:
    with pytest.raises(LoadError, match="dtype must be one of"):
        WhisperASR(dtype="float8")


def test_a_recording_that_ends_before_it_says_so_is_heard_to_its_end(
    engine: WhisperASR, speech: Any, tmp_path: Path
) -> None:
    job = dataclasses.replace(write_job(tmp_path, speech), seconds=60.0)
    segments = engine.split(job, Document(()))
    assert segments and segments[-1].end <= 11.0


def test_example_is_computed_and_looked_at(engine: WhisperASR, model: Any) -> None:
    with torch.inference_mode():
        [output] = engine.infer(model, [engine.example()])
    engine.verify(output)
    with pytest.raises(LoadError, match="is not finite"):
        engine.verify({**output, "log_probs": torch.tensor([torch.nan])})


def make_multilingual(engine: WhisperASR | LanguageDetector) -> None:
    """The English-only weights under a checkpoint that says it knows more: its tokenizer has the tokens."""
    languages = {"de": 50260, "en": 50258, "fr": 50264}
    engine._checkpoint = dataclasses.replace(
        engine._checkpoint, multilingual=True, languages=languages, transcribe=50357
    )


@pytest.fixture
def detector(folder: str) -> LanguageDetector:
    detector = LanguageDetector(folder)
    detector.setup()
    return detector


def test_detector_shares_the_model(detector: LanguageDetector, engine: WhisperASR) -> None:
    assert detector.identify_model() == engine.identify_model()
    assert detector.fingerprint() != engine.fingerprint()


def test_language_of_an_english_checkpoint_is_english(detector: LanguageDetector, speech: Any, tmp_path: Path) -> None:
    job = write_job(tmp_path, speech)
    assert detector.split(job, Document(())) == []
    assert detector.join(job, Document(()), [], []).languages == ("eng",)


def test_language_is_detected_where_there_is_speech(
    detector: LanguageDetector, model: Any, speech: Any, tmp_path: Path
) -> None:
    make_multilingual(detector)
    job = write_job(tmp_path, speech)
    document = run(detector, model, job)
    assert document.languages[0] in ("deu", "eng", "fra")
    assert detector.split(job, Document((), languages=("deu",))) == []
    silent = write_job(tmp_path, np.zeros(3 * SAMPLE_RATE), "silent")
    assert run(detector, model, silent) == Document((), media="talk")


def test_language_is_the_mean_of_the_windows(detector: LanguageDetector, tmp_path: Path) -> None:
    make_multilingual(detector)
    job = write_job(tmp_path, np.zeros(1))
    sure = detector.join(job, Document(()), [], [(("deu", 0.8), ("eng", 0.2)), (("eng", 0.5), ("deu", 0.5))])
    assert (sure.languages, sure.warnings) == (("deu",), ())
    unsure = detector.join(job, Document(()), [], [(("deu", 0.4), ("eng", 0.3), ("fra", 0.3))])
    assert unsure.languages == ("deu",)
    assert unsure.warnings == ("its language is uncertain (deu 40%, eng 30%, fra 30%); set it with --lang",)


def test_language_other_than_stated_is_reported(folder: str, tmp_path: Path) -> None:
    engine = WhisperASR(folder, language="eng")
    engine.setup()
    make_multilingual(engine)
    job = write_job(tmp_path, np.zeros(SAMPLE_RATE))
    segment = Segment(0, 0.0, 1.0, WindowSettings("en"))
    words = (Word("hallo", 0.1, 0.5, 0.9),)
    [warning] = engine.join(job, Document(()), [segment], [Heard(words, False, (("deu", 0.97),))]).warnings
    assert warning == "it was transcribed as eng, but it sounds like deu (97%); check --lang"
    assert engine.join(job, Document(()), [segment], [Heard(words, False, (("deu", 0.6),))]).warnings == ()


def test_multilingual_prompt_names_the_language(folder: str, model: Any, speech: Any, tmp_path: Path) -> None:
    engine = WhisperASR(folder)
    engine.setup()
    make_multilingual(engine)
    job = write_job(tmp_path, speech[: 3 * SAMPLE_RATE])
    segment = Segment(0, 0.0, 3.0, WindowSettings("fr"))
    with torch.inference_mode():
        [output] = engine.infer(model, [engine.prepare(job, segment)])
    assert list(engine._checkpoint.languages)[int(output["language"])] == "fr"
    assert output["attention"].shape[0] == 4 + len(output["text"])  # start, language, task, no timestamps
    assert output["languages"].sum() == pytest.approx(1.0)
