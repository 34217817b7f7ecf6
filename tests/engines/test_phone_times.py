"""Where the phones of words are: pronunciations, and times from what a head hears."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from prefork.engines.ctc.aligner import EMBEDDED
from prefork.engines.ctc.checkpoint import load_model, open_checkpoint
from prefork.engines.ctc.phone_head import PHONES, SILENCE
from prefork.engines.ctc.phone_times import PhoneClock, count_search_bytes, measure_words
from prefork.engines.ctc.pronunciations import FILE, Pronunciations
from prefork.engines.errors import LoadError
from prefork.engines.text.document import Character, Timing, Word

STEP = 0.01
CLOCK = PhoneClock(origin=2.0, step=STEP)
SPOKEN = Pronunciations.read(EMBEDDED / FILE)
TEXTS = ["cat", "sees", "zebra", "these", "hello", "strengths"]


def name_phones(word: str) -> list[list[str]]:
    return [[PHONES[column - 1] for column in way] for way in SPOKEN.pronounce(word)]


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("Hello", "HH AX L OW"),
        ("CAT", "K AE T"),
        ("don’t", "D OW N T"),  # noqa: RUF001
        ("dogs'", "D AO G Z"),
        ("'cause", "K AX Z"),
        ("naïve", "N AY IY V"),
        ("ice_cream", "AY S K R IY M"),
        ("skibidi", "S K IH B IH D IY"),  # not in the dictionary
    ],
)
def test_words_are_pronounced_as_english_has_them(word: str, phones: str) -> None:
    assert name_phones(word)[0] == phones.split()


@pytest.mark.parametrize("word", ["", "'", "...", "42", "mp3", "мир", "日本", "ß"])
def test_what_is_no_english_word_has_no_pronunciation(word: str) -> None:
    assert SPOKEN.pronounce(word) == ()


@given(st.text(max_size=30))
def test_any_text_has_phones_that_there_are_or_none(word: str) -> None:
    assert all(1 <= column <= len(PHONES) for way in SPOKEN.pronounce(word) for column in way)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"word AB"),
        gzip.compress(b"word AB\n\nrule"),
        gzip.compress(b"word AB\n\n<a !"),
        (EMBEDDED / FILE).read_bytes()[:1000],
    ],
    ids=["empty", "no gzip", "no blank line", "no rules", "no phone", "cut off"],  # gzip writes the time of day
)
def test_a_damaged_file_of_pronunciations_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    with pytest.raises(ValueError, match=FILE):
        Pronunciations.read(path)


def say(texts: list[str], gaps: list[float], lasts: float) -> tuple[list[Word], torch.Tensor]:
    """Words at exact times, and what a head would hear of them: each phone as much as it has of a step."""
    at = CLOCK.origin + gaps[0]
    words, segments = [], []
    for text, gap in zip(texts, gaps[1:], strict=True):
        phones = []
        for name in name_phones(text)[0]:
            phones.append(Character(name, at, at + lasts, 1.0))
            at += lasts
        words.append(Word(text, phones[0].start, phones[-1].end, 0.9, Timing.ALIGNED, (), tuple(phones)))
        segments += phones
        at += gap
    heard = torch.full((math.ceil((at - CLOCK.origin) / STEP) + 1, 1 + len(PHONES)), 1e-4)
    left = torch.ones(len(heard))
    begins = CLOCK.origin + STEP * torch.arange(len(heard))
    for phone in segments:
        part = (begins + STEP).clamp(max=phone.end) - begins.clamp(min=phone.start)
        heard[:, 1 + PHONES.index(phone.text)] += part.clamp(min=0) / STEP
        left -= part.clamp(min=0) / STEP
    heard[:, SILENCE] += left.clamp(min=0)
    return words, (heard / heard.sum(1, keepdim=True)).log().half()


def shift(words: list[Word], seconds: float) -> list[Word]:
    return [Word(w.text, (w.start or 0) + seconds, (w.end or 0) + seconds, 0.9, Timing.ALIGNED) for w in words]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8),
    st.data(),
    st.floats(0.031, 0.12),
    st.floats(-0.1, 0.1),
)
def test_words_and_phones_are_where_they_are_heard(
    texts: list[str], data: st.DataObject, lasts: float, away: float
) -> None:
    """However far the letters were off, and with pauses between the words, which are nobody's."""
    gaps = data.draw(st.lists(st.sampled_from([0.0, 0.053, 0.3]), min_size=len(texts), max_size=len(texts)))
    words, heard = say(texts, [0.35, *gaps], lasts)
    measured = measure_words(shift(words, away), heard, CLOCK, SPOKEN, 100.0)
    for word, true in zip(measured, words, strict=True):
        assert [phone.text for phone in word.phones] == [phone.text for phone in true.phones]
        pairs: list[tuple[Any, Any]] = [(word, true), *zip(word.phones, true.phones, strict=True)]
        for found, known in pairs:
            assert (found.start, found.end) == pytest.approx((known.start, known.end), abs=0.006)


def test_many_words_are_measured_as_few_are() -> None:
    texts = [TEXTS[place % len(TEXTS)] for place in range(70)]
    words, heard = say(texts, [0.35, *[0.04 * (place % 3) for place in range(70)]], 0.05)
    measured = measure_words(shift(words, 0.03), heard, CLOCK, SPOKEN, 100.0)
    assert [word.text for word in measured] == texts
    for word, true in zip(measured, words, strict=True):
        assert (word.start, word.end) == pytest.approx((true.start, true.end), abs=0.006)


def test_a_word_without_a_pronunciation_has_the_speech_between_its_neighbours() -> None:
    words, heard = say(["cat", "hello", "cat"], [0.35, 0.0, 0.0, 0.2], 0.06)
    unknown = shift(words, 0.02)
    unknown[1] = Word("42", unknown[1].start, unknown[1].end, None, Timing.WILDCARD)
    measured = measure_words(unknown, heard, CLOCK, SPOKEN, 100.0)
    assert measured[1].phones == () and measured[1].timing is Timing.WILDCARD
    assert (measured[1].start, measured[1].end) == pytest.approx((words[1].start, words[1].end), abs=0.02)


def test_the_speech_of_neighbours_that_are_not_asked_for_is_left_alone() -> None:
    words, heard = say(["zebra", "cat", "sees"], [0.1, 0.0, 0.0, 0.1], 0.06)
    (measured,) = measure_words(shift(words[1:2], 0.05), heard, CLOCK, SPOKEN, 100.0)
    assert (measured.start, measured.end) == pytest.approx((words[1].start, words[1].end), abs=0.006)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([*TEXTS, "42", "мир"]), st.integers(0, 60), st.integers(0, 60)), min_size=1),
    st.integers(1, 120),
    st.integers(0, 10_000),
)
def test_whatever_is_heard_words_stay_in_order_and_apart(
    listed: list[tuple[str, int, int]], steps: int, seed: int
) -> None:
    at = 0
    words = []
    for text, gap, length in listed:
        start, end = CLOCK.origin + (at + gap) * STEP, CLOCK.origin + (at + gap + length) * STEP
        words.append(Word(text, start, end, 0.5, Timing.ALIGNED, (Character("a", start, end, 0.5),)))
        at += gap + length
    heard = torch.randn(steps, 1 + len(PHONES), generator=torch.Generator().manual_seed(seed)).log_softmax(-1).half()
    measured = measure_words(words, heard, CLOCK, SPOKEN, 100.0)
    assert [word.text for word in measured] == [word.text for word in words]
    edges: list[Any] = [time for word in measured for time in (word.start, word.end)]
    assert all(a <= b for a, b in pairwise(edges))
    assert edges[0] >= CLOCK.origin - 1e-9 and edges[-1] <= CLOCK.origin + steps * STEP + 1e-9
    for word in measured:
        parts: list[Any] = [t for part in (*word.characters, *word.phones) for t in (part.start, part.end)]
        assert all((word.start or 0) <= time <= (word.end or 0) for time in parts)


@settings(deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8), st.integers(0, 10_000))
def test_a_phone_of_which_nothing_is_heard_lasts_a_step(texts: list[str], seed: int) -> None:
    """Else a TextGrid, which has no intervals without a length, would lack it."""
    words, _ = say(texts, [0.35, *[0.0] * len(texts)], 0.03)
    steps = math.ceil(((words[-1].end or 0.0) + 0.35 - CLOCK.origin) / STEP)
    heard = 4 * torch.randn(steps, 1 + len(PHONES), generator=torch.Generator().manual_seed(seed))
    measured = measure_words(shift(words, 0.0), heard.log_softmax(-1).half(), CLOCK, SPOKEN, 100.0)
    for word in measured:
        assert word.phones and word.phones[0].start == word.start and word.phones[-1].end == word.end
        assert all(phone.end - phone.start >= STEP - 0.0011 for phone in word.phones)
        assert all(left.end == right.start for left, right in pairwise(word.phones))


def test_words_that_lie_minutes_apart_take_little_memory() -> None:
    """Where few words are all that is known of a long recording."""
    seconds = 600
    heard = torch.zeros(round(seconds / STEP), 1 + len(PHONES), dtype=torch.half)
    words = [Word("measurement", 2.0 + 25 * place, 2.5 + 25 * place, 0.9, Timing.ALIGNED) for place in range(24)]
    tracemalloc.start()
    try:
        measure_words(words, heard, CLOCK, SPOKEN, 700.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 90e6
    assert peak < count_search_bytes([word.text for word in words], len(heard)) < 2.5 * peak


def test_a_model_that_tells_phones_apart_needs_its_pronunciations(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    (folder / FILE).unlink()
    with pytest.raises(LoadError, match=rf"{FILE} cannot be read .*give a folder"):
        open_checkpoint(str(folder))
    settings = json.loads((folder / "config.json").read_text()) | {"phone_dim": 0}
    (folder / "config.json").write_text(json.dumps(settings))
    assert open_checkpoint(str(folder)).pronunciations is None
    with pytest.raises(LoadError, match=r"unexpected \(phones\."):
        load_model(open_checkpoint(str(folder)))


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(open_checkpoint(str(EMBEDDED)))


@torch.inference_mode()
def test_a_row_of_a_batch_has_the_phones_that_it_has_alone(model: Any) -> None:
    waveform = load_file(EMBEDDED / "check.safetensors")["waveform"]
    lengths = [48_000, 30_081, 16_160]
    padded = torch.full((len(lengths), 48_000), 0.3)
    mask = torch.zeros(len(lengths), 48_000, dtype=torch.long)
    for row, length in enumerate(lengths):
        padded[row, :length] = waveform[:length]
        mask[row, :length] = 1
    together = model(padded, attention_mask=mask).phones
    for row, length in enumerate(lengths):
        alone = model(waveform[None, :length]).phones[0]
        assert torch.equal(together[row, : len(alone)], alone)
        assert alone.shape == (2 * ((length // 160 + 1) // 2), 1 + len(PHONES))
