"""Windows that share a batch, heard and aligned with whisper-tiny.en's real weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.engines.base import Job, Segment, Tensors
from prefork.engines.text.formats.chat import parse
from prefork.engines.whisper.aligner import WhisperAligner
from prefork.engines.whisper.asr import LanguageDetector, WhisperASR, WindowSettings
from prefork.engines.whisper.attention import attend
from prefork.engines.whisper.checkpoint import WhisperCheckpoint, compose_prompt
from prefork.engines.whisper.decoding import Decoded, WindowDecoder, _write, decode, listen
from prefork.engines.whisper.model import encode
from prefork.engines.whisper.rules import TimestampRules
from prefork.engines.whisper.windows import DETECT, tell_languages

CLOSE = 2e-3  # what float32 rounds differently in a batch is far below


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine(shared: Path) -> WhisperASR:
    engine = WhisperASR(str(shared / "models" / "whisper-tiny.en"))
    engine.setup()
    return engine


@pytest.fixture(scope="module")
def checkpoint(engine: WhisperASR) -> WhisperCheckpoint:
    return engine._checkpoint


@pytest.fixture(scope="module")
def model(engine: WhisperASR) -> Any:
    return engine.load()


@pytest.fixture(scope="module")
def speech(shared: Path) -> Any:
    return read_audio(shared / "data" / "jfk.flac", 0.0, 11.0)


@pytest.fixture(scope="module")
def windows(engine: WhisperASR, speech: Any) -> list[Tensors]:
    """A long one, one without speech, and a short one."""
    noise = 0.05 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE)
    sounds = [speech, noise, speech[: 3 * SAMPLE_RATE]]
    return [engine._make_tensors(torch.from_numpy(np.asarray(sound, np.float32)), None) for sound in sounds]


@pytest.fixture(scope="module")
def alone(engine: WhisperASR, model: Any, windows: Sequence[Tensors]) -> list[Tensors]:
    with torch.inference_mode():
        return [engine.infer(model, [window])[0] for window in windows]


@pytest.fixture(scope="module")
def encoded(model: Any, windows: Sequence[Tensors]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return encode(model, [window["features"] for window in windows])


@pytest.mark.slow
@torch.inference_mode()
def test_windows_are_heard_alike_alone_and_in_company(
    engine: WhisperASR, model: Any, windows: Sequence[Tensors], alone: Sequence[Tensors]
) -> None:
    together = engine.infer(model, windows)
    assert [bool(len(output["text"])) for output in together] == [True, False, True]
    for here, there in zip(together, alone, strict=True):
        assert torch.equal(here["text"], there["text"]) and torch.equal(here["failed"], there["failed"])
        assert torch.allclose(here["log_probs"], there["log_probs"], atol=CLOSE)
        job, segment = Job("talk", Path("talk")), Segment(0, 0.0, len(here["quiet"]) * 0.02, WindowSettings())
        words, expected = (engine.finish(job, segment, output).words for output in (here, there))
        assert [(w.text, w.start, w.end) for w in words] == [(w.text, w.start, w.end) for w in expected]


@torch.inference_mode()
def test_samples_do_not_depend_on_company(
    checkpoint: WhisperCheckpoint, model: Any, encoded: list[torch.Tensor]
) -> None:
    rules, prompt = TimestampRules(checkpoint), compose_prompt(checkpoint, timestamps=True)

    def sample(states: list[torch.Tensor]) -> list[list[int]]:
        decoder = WindowDecoder(model, states)
        listen(decoder, checkpoint)
        drafts = _write(decoder, rules, dict.fromkeys(range(len(states)), prompt), 0.8, [12] * len(states))
        return [[token for token, _ in drafts[window]] for window in range(len(states))]

    together = sample(encoded)
    assert [sample([states])[0] for states in encoded] == together
    assert len({tuple(tokens) for tokens in together}) == len(together)


@torch.inference_mode()
def test_windows_leave_and_start_anew_in_any_order(
    checkpoint: WhisperCheckpoint, model: Any, encoded: list[torch.Tensor]
) -> None:
    """What each window is told comes from its own audio, whichever rows the others have left it."""
    begin = checkpoint.timestamp_begin
    told = {0: [843, 523], 1: [770, 11], 2: [407, 644]}
    alone = {}
    for window, tokens in told.items():
        decoder = WindowDecoder(model, encoded[window : window + 1])
        listen(decoder, checkpoint)
        decoder.start()
        decoder.feed([[checkpoint.sot, begin]])
        alone[window] = [decoder.feed([[token]])[0] for token in tokens]
    decoder = WindowDecoder(model, encoded)
    listen(decoder, checkpoint)
    for started, left in (([0, 1, 2], [0]), ([2, 0], [2]), ([1, 2], [1]), ([0, 1, 2], [0, 1]), ([0], [0])):
        decoder.start(started)
        assert sorted(decoder.windows) == sorted(started)
        decoder.feed([[checkpoint.sot, begin]] * len(started))
        for step in range(2):
            logits = decoder.feed([[told[window][step]] for window in decoder.windows])
            for window, row in zip(decoder.windows, logits, strict=True):
                assert torch.allclose(row, alone[window][step], atol=CLOSE)
            decoder.drop(left)
            assert set(decoder.windows) == set(started) - set(left)
            if not decoder.windows:
                break


@torch.inference_mode()
def test_only_windows_that_do_not_hold_up_are_written_again(
    checkpoint: WhisperCheckpoint, model: Any, encoded: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[tuple[float, list[int]]] = []

    def write(decoder: WindowDecoder, rules: Any, prompts: Any, temperature: float, most: Any) -> Any:
        rounds.append((temperature, sorted(prompts)))
        return _write(decoder, rules, prompts, temperature, most)

    monkeypatch.setattr("prefork.engines.whisper.decoding._write", write)
    monkeypatch.setattr(Decoded, "sound", property(lambda said: said.temperature >= 0.4 or len(said.tokens) > 20))
    monkeypatch.setattr(Decoded, "silent", property(lambda _: False))
    decoder = WindowDecoder(model, [encoded[2], encoded[0]])
    listen(decoder, checkpoint)
    decoded = decode(decoder, checkpoint, [0.0] * 2)
    assert len(decoded[0].tokens) < 20 < len(decoded[1].tokens)
    assert rounds == [(0.0, [0, 1]), (0.2, [0]), (0.4, [0])]
    assert [said.temperature for said in decoded] == [0.4, 0.0]


@torch.inference_mode()
def test_each_window_has_its_own_limit_of_tokens(
    engine: WhisperASR, model: Any, windows: Sequence[Tensors], alone: Sequence[Tensors]
) -> None:
    most = [6, 3]
    cut = engine.infer(model, [{**windows[0], "most": torch.tensor(count)} for count in most])
    whole = alone[0]["text"].tolist()
    assert [output["text"].tolist() for output in cut] == [whole[: count - 1] for count in most]  # and a timestamp


@pytest.mark.slow
@torch.inference_mode()
def test_windows_whose_text_stops_early_are_looked_at_again_together(
    model: Any, engine: WhisperASR, speech: Any
) -> None:
    """With so few tokens at once the text ends at the timestamp of 8 s."""
    sounds = [(speech, 16), (speech[1600:], 18)]
    windows = [engine._make_tensors(torch.from_numpy(s), None) | {"most": torch.tensor(most)} for s, most in sounds]
    sizes: list[int] = []
    with model.encoder.register_forward_hook(lambda *call: sizes.append(len(call[1][0]))):
        together = engine.infer(model, windows)
        [alone] = engine.infer(model, windows[1:])
    assert sizes == [2, 2, 1, 1]
    assert torch.equal(together[1]["text"], alone["text"])
    assert all(len(output["text"]) > 20 for output in together)


@torch.inference_mode()
def test_languages_are_told_together(
    checkpoint: WhisperCheckpoint, model: Any, windows: Sequence[Tensors], encoded: list[torch.Tensor]
) -> None:
    """The English-only weights under a checkpoint that says it knows more: its tokenizer has the tokens."""
    languages = {"de": 50260, "en": 50258, "fr": 50264}
    many = dataclasses.replace(checkpoint, multilingual=True, languages=languages, transcribe=50357)
    detector = LanguageDetector()
    detector._checkpoint = many
    found = [output["languages"] for output in detector.infer(model, [windows[2], windows[0]])]
    for row, window in zip(found, (2, 0), strict=True):
        [alone] = listen(WindowDecoder(model, encoded[window : window + 1]), many)
        assert torch.allclose(row, alone.languages, atol=1e-4)
    best = list(languages)[int(found[1].argmax())]
    assert tell_languages(many, [50264, DETECT], found) == ["fr", best]
    assert tell_languages(checkpoint, [DETECT, DETECT], found) == [None, None]


@torch.inference_mode()
def test_texts_of_different_lengths_are_aligned_alike(
    checkpoint: WhisperCheckpoint, model: Any, encoded: list[torch.Tensor]
) -> None:
    words = checkpoint.tokenizer.encode(" And so my fellow Americans ask not")
    prompt = compose_prompt(checkpoint)
    tokens, frames = [[*prompt, *words], prompt, [*prompt, *words * 10]], [550, 100, 151]
    together = attend(WindowDecoder(model, encoded), checkpoint, tokens, frames)
    for window, (attention, log_probs) in enumerate(together):
        assert attention.shape == (len(tokens[window]), frames[window])
        assert log_probs.shape == (len(tokens[window]) - 1,)
        [alone] = attend(
            WindowDecoder(model, encoded[window : window + 1]), checkpoint, [tokens[window]], [frames[window]]
        )
        assert torch.allclose(log_probs, alone[1], atol=CLOSE)
        assert torch.allclose(attention, alone[0], atol=CLOSE)


@torch.inference_mode()
def test_words_of_a_transcript_have_the_same_times_in_company(model: Any, shared: Path) -> None:
    aligner = WhisperAligner(str(shared / "models" / "whisper-tiny.en"))
    aligner.setup()
    source = shared / "data" / "speech" / "child14.cha"
    media = source.with_suffix(".flac")
    job = Job("child14", source, media)
    segments = aligner.split(job, parse(source.read_text(encoding="utf-8"), str(source)))[:2]
    prepared = [aligner.prepare(job, segment) for segment in segments]
    prepared.insert(1, {**prepared[0], "tokens": torch.tensor([])})  # more than the decoder takes
    together = aligner.infer(model, prepared)
    assert together.pop(1)["attention"].shape == (0, len(prepared.pop(1)["quiet"]))
    for segment, tensors, output in zip(segments, prepared, together, strict=True):
        here, there = (aligner.finish(job, segment, o) for o in (output, aligner.infer(model, [tensors])[0]))
        assert _list_times(here) == _list_times(there) != []


def _list_times(piece: Any) -> list[tuple[str, float | None, float | None]]:
    return [(word.text, word.start, word.end) for line in piece.words for word in line]


def test_a_window_counts_thirty_seconds_however_short(engine: WhisperASR, shared: Path) -> None:
    aligner = WhisperAligner(str(shared / "models" / "whisper-tiny.en"))
    aligner.setup()
    short = Segment(0, 1.0, 2.5)
    assert engine.count_elements(short) == aligner.count_elements(short) == 480_000


def test_rules_are_those_of_each_row(checkpoint: WhisperCheckpoint) -> None:
    """Beside the same rules for one row at a time."""
    rules, begin = TimestampRules(checkpoint), checkpoint.timestamp_begin
    written = [[begin, 616, 616], [begin, 616, begin + 9], [begin + 20, 616, 616], [begin + 9, 616, begin + 30]]
    written.append([616, begin + 30, begin + 30])
    logits = torch.randn(len(written), checkpoint.config.vocab_size, generator=torch.Generator().manual_seed(0)) * 9
    together = rules.apply(logits.clone(), written)
    for row, tokens in enumerate(written):
        assert torch.equal(rules.apply(logits[row : row + 1].clone(), [tokens])[0], together[row])
    assert len({tuple(row.isinf().tolist()) for row in together}) == len(written)
