"""Whisper's forced alignment with real weights on real speech and on a synthesiser's words."""

from __future__ import annotations

import json
import pickle
import statistics
import wave
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefork.engines.audio.reader import read_audio
from prefork.engines.base import InputError, Job, LoadError
from prefork.engines.text.document import Document, Timing, Utterance, Word
from prefork.engines.whisper.aligner import WhisperAligner
from prefork.engines.whisper.checkpoint import compose_prompt

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TINY = SHARED / "models" / "whisper-tiny.en"
SPEECH = SHARED / "data" / "jfk.flac"
WORDS = ["And", "so", "my", "fellow", "Americans", "ask", "not", "what", "your", "country", "can", "do", "for", "you"]

pytestmark = [
    pytest.mark.dependencies,
    pytest.mark.skipif(not TINY.is_dir(), reason="needs ../shared/models/whisper-tiny.en"),
]


@pytest.fixture(scope="module")
def aligner() -> WhisperAligner:
    engine = WhisperAligner(str(TINY))
    engine.setup()
    return engine


@pytest.fixture(scope="module")
def model(aligner: WhisperAligner) -> Any:
    return aligner.load()


def write_job(folder: Path, samples: Any) -> Job:
    media = folder / "talk.wav"
    with wave.open(str(media), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())
    return Job("talk", media, media, seconds=len(samples) / 16_000)


def write(*lines: tuple[Sequence[str], float | None, float | None], languages: tuple[str, ...] = ("eng",)) -> Document:
    utterances = (Utterance(" ".join(words), tuple(map(Word, words)), None, start, end) for words, start, end in lines)
    return Document(tuple(utterances), languages=languages)


@torch.inference_mode()
def align(engine: WhisperAligner, model: Any, job: Job, document: Document) -> Document:
    """As a run does it: what goes from step to step is pickled."""
    segments = pickle.loads(pickle.dumps(engine.split(job, document)))
    outputs = [engine.infer(model, [engine.prepare(job, segment)])[0] for segment in segments]
    pieces = [engine.finish(job, *pair) for pair in zip(segments, outputs, strict=True)]
    return engine.join(job, document, segments, pickle.loads(pickle.dumps(pieces)))


def list_words(document: Document) -> list[Word]:
    return [word for utterance in document.utterances for word in utterance.words]


def assert_in_order(words: list[Word], seconds: float) -> None:
    edges = [time for word in words for time in (word.start, word.end) if time is not None]
    assert len(edges) == 2 * len(words)
    assert edges[0] >= 0 and edges[-1] <= seconds
    assert all(a <= b for a, b in pairwise(edges))


def test_real_speech_is_aligned_word_by_word(aligner: WhisperAligner, model: Any, tmp_path: Path) -> None:
    job = write_job(tmp_path, read_audio(SPEECH, 0.0, 8.0))
    words = list_words(align(aligner, model, job, write((WORDS, None, None))))
    assert [word.text for word in words] == WORDS
    assert all(word.timing is Timing.ATTENTION and 0.2 < (word.score or 0) <= 1 for word in words)
    assert_in_order(words, 8.0)
    # The CTC aligner has "fellow" at 1.27 s; "ask" and "what", after pauses, at 3.49 and 5.29.
    assert [words[i].start for i in (3, 5, 7)] == pytest.approx([1.27, 3.49, 5.29], abs=0.25)
    assert (words[4].end or 9) < 2.6  # the pause after "Americans" belongs to no word


def test_words_of_a_synthesiser_are_found_near_where_it_spoke_them(aligner: WhisperAligner, model: Any) -> None:
    data = SHARED / "data" / "aligned-tts"
    truth = json.loads((data / "words.json").read_text(encoding="utf-8"))
    errors = []
    for name in sorted(truth)[:5]:
        media = data / f"{name}.flac"
        document = align(aligner, model, Job(name, media, media), write(([w["word"] for w in truth[name]], None, None)))
        pairs = zip(list_words(document), truth[name], strict=True)
        errors += [(word.start or 0) - known["start"] for word, known in pairs]
    assert statistics.median(map(abs, errors)) < 0.12
    assert sum(abs(error) <= 0.3 for error in errors) / len(errors) > 0.9


def test_a_neighbours_words_in_the_margins_are_left_to_it(aligner: WhisperAligner, model: Any, tmp_path: Path) -> None:
    """The window begins half a second before the utterance, in the word before."""
    job = write_job(tmp_path, read_audio(SPEECH, 0.0, 8.0))
    words = list_words(align(aligner, model, job, write((WORDS[8:12], 5.7, 7.0))))
    assert words[0].start == pytest.approx(5.7, abs=0.15) and (words[-1].end or 9) <= 7.05
    assert_in_order(words, 8.0)


def test_words_of_any_script_and_marks_come_back_one_for_one(
    aligner: WhisperAligner, model: Any, tmp_path: Path
) -> None:
    job = write_job(tmp_path, read_audio(SPEECH, 0.0, 8.0))
    odd = ["xxx", "日本語", "<|endoftext|>", "…", "Übung", "&-um", "\N{GRINNING FACE}", "42"]
    words = list_words(align(aligner, model, job, write((odd, None, None))))
    assert [word.text for word in words] == odd
    assert_in_order(words, 8.0)


@pytest.mark.parametrize("sound", ["noise", "another"])
def test_words_that_are_not_in_the_recording_have_low_scores(
    aligner: WhisperAligner, model: Any, tmp_path: Path, sound: str
) -> None:
    noise = 0.05 * np.random.default_rng(2).standard_normal(48_000)
    samples = {"noise": noise, "another": read_audio(SPEECH, 0.0, 3.0)}[sound]
    text = ["purple", "elephants", "juggle", "seventeen", "pancakes"]
    words = list_words(align(aligner, model, write_job(tmp_path, samples), write((text, None, None))))
    assert_in_order(words, 3.0)
    assert statistics.mean(word.score or 0 for word in words) < 0.35


def test_words_are_not_found_where_nothing_was_recorded(aligner: WhisperAligner, model: Any, tmp_path: Path) -> None:
    untimed, timed = (["purple", "elephants"], None, None), (["purple", "elephants"], 0.5, 2.0)
    for line, kept in ((untimed, (None, None)), (timed, (0.5, 2.0))):
        document = align(aligner, model, write_job(tmp_path, np.zeros(48_000)), write(line))
        (utterance,) = document.utterances
        assert [(word.text, word.start) for word in utterance.words] == [("purple", None), ("elephants", None)]
        assert (utterance.start, utterance.end, utterance.missing) == (*kept, kept == (None, None))
        assert "not found in the recording, which is silent there" in document.warnings[0]


def test_a_fifth_of_a_second_is_enough_for_a_short_word(aligner: WhisperAligner, model: Any, tmp_path: Path) -> None:
    words = list_words(
        align(aligner, model, write_job(tmp_path, np.resize([1e-3, -1e-3], 3_200)), write((["oh"], None, None)))
    )
    assert_in_order(words, 0.2)


def test_an_utterance_with_too_many_words_is_spread_and_said_so(
    aligner: WhisperAligner, model: Any, tmp_path: Path
) -> None:
    job = write_job(tmp_path, read_audio(SPEECH, 0.0, 8.0))
    document = align(aligner, model, job, write((WORDS[:5], 0.2, 2.4), (["Americans"] * 500, 3.0, 3.4)))
    assert all(word.timing is Timing.ATTENTION for word in document.utterances[0].words)
    assert all(word.timing is Timing.INTERPOLATED for word in document.utterances[1].words)
    assert "500 words do not fit into 0.4 s" in document.warnings[0]


def test_what_is_too_long_for_one_window_names_the_remedy(aligner: WhisperAligner, tmp_path: Path) -> None:
    job = write_job(tmp_path, np.zeros(31 * 16_000))
    with pytest.raises(InputError, match=r"talk: 14 words .* within 31 s, .* 30 s at once; .*--utr ctc"):
        aligner.split(job, write((WORDS, None, None)))
    with pytest.raises(InputError, match=r"talk: 450 words over 20 s are \d+ tokens, but Whisper takes 446 at once"):
        aligner.split(write_job(tmp_path, np.zeros(20 * 16_000)), write((["a"] * 450, None, None)))


def test_the_example_runs_and_shows_a_model_that_cannot_compute(aligner: WhisperAligner, model: Any) -> None:
    with torch.inference_mode():
        (output,) = aligner.infer(model, [aligner.example()])
    aligner.verify(output)
    with pytest.raises(LoadError, match="attention over 2 s of audio cannot be used"):
        aligner.verify({**output, "attention": output["attention"] * float("nan")})


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_lower_precision_finds_the_same_words(model: Any, aligner: WhisperAligner, dtype: str, tmp_path: Path) -> None:
    engine = WhisperAligner(str(TINY), dtype=dtype)
    engine.setup()
    job, document = write_job(tmp_path, read_audio(SPEECH, 0.0, 3.0)), write((WORDS[:5], None, None))
    exact = [word.start for word in list_words(align(aligner, model, job, document))]
    starts = [word.start for word in list_words(align(engine, engine.load(), job, document))]
    assert starts == pytest.approx(exact, abs=0.1)
    assert engine.identify_model() != aligner.identify_model()
    assert engine.fingerprint() != aligner.fingerprint()


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(LoadError, match="at most 28, not 29"):
        WhisperAligner(max_segment=29)
    with pytest.raises(LoadError, match="dtype must be one of"):
        WhisperAligner(dtype="int4")
    engine = WhisperAligner(str(TINY), language="deu")
    with pytest.raises(LoadError, match="does not know the language 'deu', only en; "):
        engine.setup()


def test_a_multilingual_checkpoint_is_told_the_transcripts_language(tmp_path: Path) -> None:
    for file in TINY.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = json.loads((TINY / "generation_config.json").read_text(encoding="utf-8"))
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({**settings, "is_multilingual": True}))
    engine = WhisperAligner(str(tmp_path))
    engine.setup()
    checkpoint = engine._checkpoint
    assert checkpoint.languages["de"] == 50260 and checkpoint.transcribe == 50358
    job = Job("talk", SPEECH, SPEECH, seconds=11.0)
    for languages, code in ((("deu",), "de"), (("tlh",), "en"), ((), "en")):
        (segment,) = engine.split(job, write((WORDS, None, None), languages=languages))
        tokens = engine.prepare(job, segment)["tokens"].tolist()
        assert tokens[:4] == compose_prompt(checkpoint, code) == [50257, checkpoint.languages[code], 50358, 50362]
