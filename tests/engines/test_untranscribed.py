"""Speech that a transcript lacks: what is found beside the words, and which of it is named."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.engines.alignment.confidence import LOW_WORD, SURE_SPEECH, UntranscribedSpeech, doubt
from prefork.engines.alignment.viterbi import Clock, Vocabulary
from prefork.engines.base import Job
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.ctc.untranscribed import Emissions, find_untranscribed, hear_places
from prefork.engines.text import formats
from prefork.engines.text.document import Character, Document, Timing, Utterance, Word
from tests.engines.test_phone_times import CLOCK, SPOKEN, TEXTS, say
from tests.prefork.command import SAMPLES

FRAME = 0.02
LETTERS = Vocabulary({chr(97 + place): 2 + place for place in range(26)}, blank=0, separator=1)


def hear(texts: list[str], gaps: list[float], lasts: float) -> tuple[list[Word], Emissions]:
    """Words at exact times, and what a model hears of them: every phone, and each letter in a frame of its own."""
    words, phones = say(texts, gaps, lasts)
    heard = torch.full((math.ceil(len(phones) / 2), 28), 1e-4)
    heard[:, LETTERS.blank] = 1.0
    for word in words:
        assert word.start is not None and word.end is not None
        columns = [column for _, column in LETTERS.spell(word.text)]
        first, last = ((time - CLOCK.origin) / FRAME for time in (word.start, word.end))
        frames = torch.linspace(first + 0.5, last - 0.5, len(columns)).floor().int().tolist()
        for frame, column in zip(frames, columns, strict=True):
            heard[frame, LETTERS.blank], heard[frame, column] = 1e-4, 1.0
    log_probs = (heard / heard.sum(1, keepdim=True)).log()
    return words, Emissions(log_probs, phones, LETTERS, Clock(FRAME), SPOKEN, CLOCK.origin)


_TEXTS = st.lists(st.sampled_from(TEXTS), min_size=2, max_size=6, unique=True)


@settings(deadline=None, max_examples=50)
@given(_TEXTS, st.data(), st.floats(0.061, 0.12))
def test_a_word_that_is_left_out_is_found_where_it_was(texts: list[str], data: st.DataObject, lasts: float) -> None:
    gaps = data.draw(st.lists(st.sampled_from([0.02, 0.053, 0.3]), min_size=len(texts), max_size=len(texts)))
    words, heard = hear(texts, [0.35, *gaps], lasts)
    edges = CLOCK.origin, CLOCK.origin + len(heard.log_probs) * FRAME
    assert find_untranscribed(words, heard, *edges) == []
    place = data.draw(st.integers(0, len(texts) - 1))
    left_out = words.pop(place)
    (found,) = find_untranscribed(words, heard, *edges)
    assert found.place == place and found.score > SURE_SPEECH
    assert (left_out.start or 0.0) < (found.start + found.end) / 2 < (left_out.end or 0.0)


def test_what_is_said_outside_the_bounds_is_not_looked_for() -> None:
    words, heard = hear(["zebra", "cat", "sees"], [0.35, 0.1, 0.1, 0.2], 0.08)
    start, end = words[1].start or 0.0, words[1].end or 0.0
    assert find_untranscribed(words[1:2], heard, start, end) == []
    assert [one.place for one in find_untranscribed(words[1:2], heard, start - 1.0, end + 1.0)] == [0, 1]


def test_many_words_are_heard_as_few_are() -> None:
    texts = [TEXTS[place % len(TEXTS)] for place in range(70)]
    words, heard = hear(texts, [0.35, *[0.05] * 70], 0.08)
    edges = CLOCK.origin, CLOCK.origin + len(heard.log_probs) * FRAME
    assert [one.place for one in hear_places(words, heard, *edges)] == list(range(71))
    for left_out in (0, 24, 25, 47, 48, 49, 69):
        others = words[:left_out] + words[left_out + 1 :]
        assert [one.place for one in find_untranscribed(others, heard, *edges)] == [left_out]


def test_beside_a_word_that_nobody_can_pronounce_nothing_is_found() -> None:
    words, heard = hear(["zebra", "cat", "sees"], [0.35, 0.1, 0.1, 0.2], 0.08)
    words[1] = Word("42", words[1].start, words[1].end, None, Timing.WILDCARD)
    edges = CLOCK.origin, CLOCK.origin + len(heard.log_probs) * FRAME
    assert find_untranscribed(words[:2], heard, *edges) == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([*TEXTS, "42", "мир"]), st.integers(0, 60), st.integers(0, 60)), min_size=1),
    st.integers(1, 60),
    st.tuples(*[st.floats(0, 3)] * 2),
    st.integers(0, 10_000),
)
def test_whatever_is_heard_each_place_has_measures_or_none_has(
    listed: list[tuple[str, int, int]], frames: int, bounds: tuple[float, float], seed: int
) -> None:
    at = CLOCK.origin
    words = []
    for text, gap, length in listed:
        start, at = at + gap * 0.01, at + (gap + length) * 0.01
        phones = (Character("AH", start, at, 0.5),) if text in TEXTS else ()
        words.append(Word(text, start, at, 0.5, Timing.ALIGNED, (), phones))
    generator = torch.Generator().manual_seed(seed)
    letters, phones_heard = (
        (4 * torch.randn(rows, columns, generator=generator)).log_softmax(-1)
        for rows, columns in ((frames, 28), (2 * frames, 41))
    )
    heard = Emissions(letters, phones_heard.half(), LETTERS, Clock(FRAME), SPOKEN, CLOCK.origin)
    low, high = sorted(CLOCK.origin + bound for bound in bounds)
    places = hear_places(words, heard, low, high)
    assert all(measure >= 0 and math.isfinite(measure) for one in places for measure in one.measures)
    assert all(one.start <= one.end for one in places)
    if len(words) <= 24:
        assert [one.place for one in places] in ([], list(range(len(words) + 1)))


def make_utterance(text: str, start: float, scores: list[float] | None = None) -> Utterance:
    """A word of each second."""
    names = text.split()
    words = tuple(
        Word(name, start + i, start + i + 0.8, score, Timing.ALIGNED, (), (Character("AH", start + i, start + i, 0.5),))
        for i, (name, score) in enumerate(zip(names, scores or [0.9] * len(names), strict=True))
    )
    return Utterance(text, words, start=start, end=start + len(words) - 0.2)


SURE = (SURE_SPEECH + 1) / 2


def test_each_place_where_speech_is_not_written_is_named() -> None:
    one = make_utterance("the dog runs", 0.0)
    speech = [UntranscribedSpeech(place, place - 0.2, place - 0.1, SURE) for place in range(4)]
    warnings = doubt([one], 0.3, {0: speech})
    assert warnings == [
        'utterance 1 (the dog runs): speech before "the", between "the" and "dog", between "dog" and "runs" ... is not '
        "in the transcript; check text and times"
    ]
    assert 'speech after "runs" is not' in doubt([one], 0.3, {0: speech[3:]})[0]
    assert doubt([one], 0.3, {0: [UntranscribedSpeech(1, 0.8, 0.9, SURE_SPEECH - 0.01)]}) == []


def test_speech_of_another_utterance_is_its_own() -> None:
    """A bullet often reaches into the next."""
    utterances = [make_utterance("the dog runs", 0.0), make_utterance("he barks", 3.0)]
    assert doubt(utterances, 0.3, {0: [UntranscribedSpeech(3, 2.9, 4.0, SURE)]}) == []
    assert len(doubt(utterances, 0.3, {0: [UntranscribedSpeech(3, 2.7, 3.1, SURE)]})) == 1


def test_a_word_that_another_is_said_for_is_named_once() -> None:
    one = make_utterance("the dog runs", 0.0, [0.9, LOW_WORD / 2, 0.9])
    speech = [UntranscribedSpeech(place, place - 0.2, place - 0.1, SURE) for place in (1, 2, 3)]
    first, second = doubt([one], 0.3, {0: speech})
    assert "in: dog;" in first and 'speech after "runs" is' in second


def test_what_the_transcript_has_as_an_event_is_no_fault() -> None:
    one = replace(make_utterance("the dog runs", 0.0), events=((1, "laughs"),))
    speech = [UntranscribedSpeech(place, place - 0.2, place - 0.1, SURE) for place in (1, 2)]
    (warning,) = doubt([one], 0.3, {0: speech})
    assert 'speech between "dog" and "runs" is not' in warning


def test_a_transcript_of_another_recording_gets_few_warnings_and_none_of_what_is_said_besides() -> None:
    utterances = [make_utterance("the dog runs", 4.0 * i, [LOW_WORD / 2, 0.9, 0.9]) for i in range(300)]
    heard = {i: [UntranscribedSpeech(3, 4.0 * i + 2.9, 4.0 * i + 3.1, SURE)] for i in range(300)}
    *named, last = doubt(utterances, 0.3, heard)
    assert 1 <= len(named) <= 20 and all("low confidence" in warning for warning in named)
    assert last == "300 of 300 utterances have a low confidence; check that the transcript is of this recording"
    rest = [make_utterance("the dog runs", 4.0 * i) for i in range(300, 601)]
    assert len(doubt(utterances + rest, 0.3, heard)) == 600


def test_transcripts_that_lack_words_may_well_be_of_this_recording() -> None:
    """Nothing but the places is named."""
    utterances = [make_utterance("the dog runs", 0.0), make_utterance("he barks", 4.0)]
    heard = {0: [UntranscribedSpeech(1, 0.8, 0.9, SURE)], 1: [UntranscribedSpeech(1, 4.8, 4.9, SURE)]}
    assert len(doubt(utterances, 0.3, heard)) == 2


@pytest.fixture(scope="module")
def aligner() -> CTCAligner:
    engine = CTCAligner()
    engine.setup()
    return engine


@pytest.fixture(scope="module")
def model(aligner: CTCAligner) -> Any:
    return aligner.load()


@torch.inference_mode()
def align(engine: CTCAligner, model: Any, job: Job, document: Document) -> Document:
    segments = engine.split(job, document)
    outputs = [engine.infer(model, [engine.prepare(job, segment)])[0] for segment in segments]
    pieces = [engine.finish(job, *pair) for pair in zip(segments, outputs, strict=True)]
    return engine.join(job, document, segments, pickle.loads(pickle.dumps(pieces)))


@pytest.mark.dependencies
@pytest.mark.parametrize("sample", ["adult00", "adult07"])
def test_words_that_are_left_out_of_real_transcripts_are_named_where_they_were(
    aligner: CTCAligner, model: Any, sample: str, tmp_path: Path
) -> None:
    """Where their bullets are, and one word of each utterance is not; right ones get no warning."""
    source = tmp_path / f"{sample}.cha"
    source.write_bytes((SAMPLES / source.name).read_bytes())
    job = Job(sample, source, SAMPLES / f"{sample}.flac")
    right = formats.read(source)
    assert align(aligner, model, job, right).warnings == ()
    named = total = 0
    for place in range(3):
        for index, utterance in enumerate(right.utterances):
            words = [word.text for word in utterance.words]
            if place >= len(words) - 1:
                continue
            utterances = list(right.utterances)
            rest = utterance.words[:place] + utterance.words[place + 1 :]
            utterances[index] = Utterance(utterance.text, rest, start=utterance.start, end=utterance.end)
            warnings = align(aligner, model, job, Document(tuple(utterances), languages=("eng",))).warnings
            where = f'between "{words[place - 1]}" and "{words[place + 1]}"' if place else f'before "{words[1]}"'
            named += any(f"utterance {index + 1} " in w and f"speech {where}" in w for w in warnings)
            total += 1
    assert total >= 20 and named >= 0.7 * total
