"""Subtitles that people can read: short lines, few of them, long enough on the screen, cut where phrases end."""

from __future__ import annotations

import html
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rustling.chat import CHAT  # noqa: F401  it registers the formats
from rustling.srt import SRT

from prefork.engines.text import formats
from prefork.engines.text.cues import LONGEST, SPEED, Cue, CueLayout, make_cues
from prefork.engines.text.document import Document, Utterance, Word

SPEECH = (
    "And so, my fellow Americans, ask not what your country can do for you; ask what you can do for your country. "
    "My fellow citizens of the world, ask not what America will do for you, but what together we can do."
)


def say(text: str, start: float = 0.0, pace: float = 14.0, speaker: str | None = None) -> Utterance:
    """An utterance whose words take as long as they have characters. pace: characters a second."""
    words, at = [], start
    for token in text.split():
        end = at + (len(token) + 1) / pace
        words.append(Word(token.strip(".,;:?!"), round(at, 3), round(end, 3)))
        at = end
    return Utterance(text, tuple(words), speaker, start, round(at, 3))


def read_lines(cue: Cue) -> list[str]:
    return [" ".join(word.text for word in line) for line in cue.lines]


def test_long_speech_is_cut_at_phrases_with_the_words_times() -> None:
    utterance = say(SPEECH)
    cues = make_cues([utterance], CueLayout())
    assert [read_lines(cue) for cue in cues] == [
        ["And so, my fellow Americans,", "ask not what your country can do for you;"],
        ["ask what you can do for your country."],
        ["My fellow citizens of the world,"],
        ["ask not what America will do for you,", "but what together we can do."],
    ]
    starts = {word.text: word.start for word in reversed(utterance.words)}
    assert [cue.start for cue in cues] == [0.0, utterance.words[14].start, starts["My"], utterance.words[28].start]


TOKEN = st.text("abcdefgh,.", min_size=1, max_size=60)
SPOKEN = st.lists(st.tuples(TOKEN, st.floats(0, 4), st.floats(0, 9), st.booleans()), min_size=1, max_size=30)
LAYOUT = st.builds(CueLayout, st.integers(8, 60), st.integers(1, 4))


@settings(deadline=None, max_examples=150)
@given(SPOKEN, LAYOUT, st.booleans())
def test_no_cue_is_too_wide_too_high_or_too_long_and_no_word_is_lost(
    spoken: list[tuple[str, float, float, bool]], layout: CueLayout, named: bool
) -> None:
    words, at = [], 1.0
    for text, pause, length, timed in spoken:
        start, end = at + pause, at + pause + length
        words.append(Word(text, start, end) if timed else Word(text))
        at = end
    utterance = Utterance("", tuple(words), "MOT", 1.0, max(at, 1.5))
    cues = make_cues([utterance], layout, named=named)
    assert "".join(word.text for cue in cues for line in cue.lines for word in line) == "".join(w.text for w in words)
    assert all(before.start <= after.start for before, after in pairwise(cues))
    for cue in cues:
        lines = read_lines(cue)
        assert len(lines) <= layout.max_line_count or sum(map(len, cue.lines)) == 1
        assert all(len(line) <= layout.max_line_width for line in lines)
        assert cue.end - cue.start <= LONGEST + 1e-6
        if named and len(cue.lines[0]) > 1:
            assert len("MOT: " + lines[0]) <= layout.max_line_width


def test_a_cue_stays_until_it_is_read_unless_another_comes() -> None:
    quick = say("this is said much too quickly to be read", pace=40)
    alone, *_ = make_cues([quick], CueLayout(), seconds=60.0)
    assert alone.end - alone.start == pytest.approx(len(quick.text) / SPEED)
    ended, *_ = make_cues([quick], CueLayout(), seconds=1.5)
    assert ended.end == 1.5
    first, *_, second = make_cues([quick, say("and more", start=1.2)], CueLayout(), seconds=60.0)
    assert first.end == second.start == 1.2


def test_speech_that_nobody_made_out_is_in_no_subtitle_and_no_ctm() -> None:
    words = tuple(Word(text, at, at + 0.5) for at, text in enumerate(["so", "xxx", "yyy", "there"]))
    document = Document(
        (Utterance("so xxx yyy there", words, None, 0.0, 4.0), Utterance("xxx", words[1:2], None, 5, 6))
    )
    for name in ("srt", "vtt", "ctm"):
        text = formats.render(document, name)
        assert "so" in text and "there" in text and "xxx" not in text and "yyy" not in text, name
    assert "xxx" in formats.render(document, "json")


def test_utterances_without_word_times_share_theirs_among_their_cues() -> None:
    words = tuple(map(Word, SPEECH.replace(",", "").split()))
    cues = make_cues([Utterance(SPEECH, words, None, 10.0, 30.0)], CueLayout())
    assert len(cues) >= 3 and cues[0].start == 10.0 and cues[-1].end <= 30.0
    assert all(before.end <= after.start + 1e-9 for before, after in pairwise(cues))


@pytest.mark.parametrize("speakers", [(None, None), ("MOT", "CHI")])
def test_both_formats_keep_to_the_layout_and_can_be_read_again(speakers: tuple[str | None, str | None]) -> None:
    utterances = (say(SPEECH, 0.0, speaker=speakers[0]), say(SPEECH, 30.0, speaker=speakers[1]))
    document = Document(utterances, seconds=60.0)
    srt, vtt = formats.render(document, "srt"), formats.render(document, "vtt")
    assert len(SRT.from_strs([srt], parallel=False).to_strs()) == 1
    for text in (srt, re.sub(r"<[^>]*>", "", vtt.removeprefix("WEBVTT\n\n"))):
        for block in text.strip().split("\n\n"):
            number, times, *lines = html.unescape(block).split("\n")
            assert number.isdigit() and " --> " in times
            assert 1 <= len(lines) <= 2 and all(len(line) <= 42 for line in lines)
    assert ("MOT: And so," in srt) == (speakers[0] is not None)
    stamps = re.findall(r"<(\d\d:\d\d:\d\d\.\d{3})>", vtt)
    assert len(stamps) > 50


def test_words_are_underlined_while_they_are_said() -> None:
    words = (Word("ask", 1.0, 1.4), Word("not", 1.5, 1.9), Word("R&B"))
    document = Document((Utterance("ask not, R&B", words, None, 1.0, 3.0),), seconds=9.0)
    layout = CueLayout(highlight_words=True)
    blocks = formats.render(document, "srt", layout).split("\n\n")
    assert [block.split("\n")[1:] for block in map(str.strip, blocks)] == [
        ["00:00:01,000 --> 00:00:01,400", "<u>ask</u> not, R&B"],
        ["00:00:01,400 --> 00:00:01,500", "ask not, R&B"],
        ["00:00:01,500 --> 00:00:01,900", "ask <u>not,</u> R&B"],
        ["00:00:01,900 --> 00:00:03,000", "ask not, R&B"],
    ]
    assert "<u>ask</u> not, R&amp;B" in formats.render(document, "vtt", layout)


def test_narrow_single_lines_are_made_of_the_same_words() -> None:
    cues = make_cues([say(SPEECH)], CueLayout(max_line_width=20, max_line_count=1))
    lines = [read_lines(cue) for cue in cues]
    assert all(len(found) == 1 and len(found[0]) <= 20 for found in lines)
    assert " ".join(line for (line,) in lines) == SPEECH
