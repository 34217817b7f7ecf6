"""Decoding with whisper-tiny.en's real weights, compared with transformers' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import WhisperForConditionalGeneration

from prefork.engines.audio.reader import read_audio
from prefork.engines.whisper.checkpoint import WhisperCheckpoint, open_whisper
from prefork.engines.whisper.decoding import (
    Decoded,
    WindowDecoder,
    _write,
    decode,
    goes_round,
    listen,
    measure_compression,
)
from prefork.engines.whisper.model import compute_features, encode, load_whisper
from prefork.engines.whisper.rules import TimestampRules


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps of one token are too small to share; on a busy machine, threads that wait for one another take longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(shared: Path) -> WhisperCheckpoint:
    return open_whisper(str(shared / "models" / "whisper-tiny.en"))


@pytest.fixture(scope="module")
def model(checkpoint: WhisperCheckpoint) -> Any:
    return load_whisper(checkpoint)


@pytest.fixture(scope="module")
def features(shared: Path, checkpoint: WhisperCheckpoint) -> torch.Tensor:
    return compute_features(checkpoint, torch.from_numpy(read_audio(shared / "data" / "jfk.flac", 0.0, 30.0)))


@pytest.fixture(scope="module")
def decoder(model: Any, features: torch.Tensor) -> WindowDecoder:
    with torch.inference_mode():
        return WindowDecoder(model, encode(model, [features]))


@torch.inference_mode()
def test_tokens_are_those_of_transformers(
    checkpoint: WhisperCheckpoint, features: torch.Tensor, decoder: WindowDecoder
) -> None:
    [decoded] = decode(decoder, checkpoint, [opening.no_speech for opening in listen(decoder, checkpoint)])
    theirs: Any = WhisperForConditionalGeneration.from_pretrained(checkpoint.folder, dtype=torch.float32)
    expected = theirs.generate(
        F.pad(features, (0, 3000 - features.shape[1]), value=float(features.min()))[None],
        return_timestamps=True,
        max_new_tokens=224,
    )[0].tolist()
    assert decoded.tokens == tuple(token for token in expected if token not in (checkpoint.sot, checkpoint.eot))
    assert decoded.ended
    assert decoded.sound
    assert not decoded.silent
    assert decoded.temperature == 0.0
    assert -1.0 < decoded.mean_log_prob < 0.0


@torch.inference_mode()
def test_cached_steps_are_those_of_one_pass(checkpoint: WhisperCheckpoint, decoder: WindowDecoder) -> None:
    tokens = [checkpoint.sot, checkpoint.timestamp_begin, 843, 523, 616]
    decoder.start()
    steps = [decoder.feed([[token]]) for token in tokens]
    decoder.start()
    assert torch.allclose(decoder.feed([tokens]), steps[-1], atol=1e-3)


@torch.inference_mode()
def test_samples_do_not_depend_on_what_was_drawn_before(checkpoint: WhisperCheckpoint, decoder: WindowDecoder) -> None:
    def sample() -> list[tuple[int, float]]:
        return _write(decoder, TimestampRules(checkpoint), {0: [checkpoint.sot]}, 1.0, [12])[0]

    state = torch.get_rng_state()
    first = sample()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert sample() == first


@torch.inference_mode()
def test_silence_is_silent(checkpoint: WhisperCheckpoint, model: Any) -> None:
    noise = 0.01 * torch.randn(48_000, generator=torch.Generator().manual_seed(0))
    decoder = WindowDecoder(model, encode(model, [compute_features(checkpoint, noise)]))
    [decoded] = decode(decoder, checkpoint, [opening.no_speech for opening in listen(decoder, checkpoint)])
    assert decoded.silent


@pytest.fixture(scope="module")
def rules(checkpoint: WhisperCheckpoint) -> TimestampRules:
    return TimestampRules(checkpoint)


def allow(rules: TimestampRules, tokens: list[int], favourite: int | None = None) -> set[int]:
    """What may follow the tokens; one of them is far likelier than all others."""
    logits = torch.zeros(rules.begin + 1501)
    if favourite is not None:
        logits[favourite] = 50.0
    return set((rules.apply(logits[None], [tokens])[0] > -torch.inf).nonzero()[:, 0].tolist())


WORD = 616


def test_first_token_is_a_timestamp_of_the_first_second(rules: TimestampRules) -> None:
    assert allow(rules, []) == set(range(rules.begin, rules.begin + 51))


def test_a_word_follows_the_first_timestamp_and_a_pair(rules: TimestampRules) -> None:
    for tokens in ([rules.begin], [rules.begin, WORD, rules.begin + 9, rules.begin + 9]):
        allowed = allow(rules, tokens)
        assert WORD in allowed
        assert max(allowed) < rules.begin


def test_a_timestamp_or_the_end_follows_one_that_ends_a_sentence(rules: TimestampRules) -> None:
    allowed = allow(rules, [rules.begin, WORD, rules.begin + 9], rules.eot)
    assert allowed == {rules.eot, *range(rules.begin + 9, rules.begin + 1501)}


def test_time_does_not_go_back_nor_stand_still(rules: TimestampRules) -> None:
    allowed = allow(rules, [rules.begin + 5, WORD], WORD)
    assert min(token for token in allowed if token >= rules.begin) == rules.begin + 6


def test_timestamps_together_beat_the_likeliest_word(rules: TimestampRules) -> None:
    assert min(allow(rules, [rules.begin, WORD])) > rules.eot
    assert WORD in allow(rules, [rules.begin, WORD], WORD)


def test_special_tokens_are_never_written(rules: TimestampRules, checkpoint: WhisperCheckpoint) -> None:
    allowed = allow(rules, [rules.begin, WORD], WORD)
    assert allowed.isdisjoint(checkpoint.suppress_tokens)
    assert allowed.isdisjoint(range(rules.eot + 1, rules.begin))


def test_loops_are_told_from_what_people_repeat() -> None:
    assert goes_round([1, 2, 3, 4] * 4)
    assert goes_round([9, 8, *[7] * 16])
    assert goes_round(list(range(20)) * 4)
    assert not goes_round(list(range(20)) * 3)
    assert not goes_round([7] * 8)
    assert not goes_round([1, 2, 3, 4] * 4 + [5])


def test_text_that_repeats_itself_is_compressed_more() -> None:
    assert measure_compression("I'm sorry. " * 30) > 2.4
    assert measure_compression("ask not what your country can do for you") < 2.4
    assert measure_compression("") == 0.0


def test_what_holds_up() -> None:
    assert Decoded(mean_log_prob=-0.5).sound
    assert not Decoded(mean_log_prob=-1.1).sound
    assert Decoded(mean_log_prob=-1.1).tolerable
    assert not Decoded(mean_log_prob=-1.6).tolerable
    assert Decoded(mean_log_prob=-0.5, compression=2.6).sound  # said twice
    assert not Decoded(mean_log_prob=-0.1, compression=2.6, ended=False).sound
    assert not Decoded(mean_log_prob=-0.1, circular=True).sound
    assert Decoded(mean_log_prob=-1.1, no_speech=0.7).silent
    assert Decoded(mean_log_prob=-0.9, text_log_prob=-2.5, no_speech=0.9).silent  # one word between two timestamps
    assert not Decoded(mean_log_prob=-0.3, no_speech=0.9).silent
