"""RTTM out."""

from __future__ import annotations

import re

from prefork.engines.text import formats
from prefork.engines.text.document import Document, Turn, Utterance, Word


def test_turns_are_lines_in_the_order_of_time() -> None:
    turns = (Turn("S01", 2.0, 2.5), Turn("S00", 0.1234, 2.25), Turn("S00", 3.0, 3.0001))
    spoken = Utterance("hi", (Word("hi", 5.0, 6.0),), "CHI", 5.0, 6.0)
    assert formats.render(Document((spoken,), media="a talk", turns=turns), "rttm") == (
        "SPEAKER a_talk 1 0.123 2.127 <NA> <NA> S00 <NA> <NA>\nSPEAKER a_talk 1 2.000 0.500 <NA> <NA> S01 <NA> <NA>\n"
    )


def test_without_turns_the_utterances_say_who_speaks() -> None:
    words = (Word("hi"),)
    document = Document(
        (
            Utterance("hi", words, "CHI", 1.0, 2.0),
            Utterance("hi", words, "MOT"),
            Utterance("hi", words, None, 2.0, 3.0),
            Utterance("hi", words, "THE MOTHER", 0.5, 1.25),
        )
    )
    lines = formats.render(document, "rttm").splitlines()
    assert [line.split()[7] for line in lines] == ["THE_MOTHER", "CHI"]
    pattern = r"SPEAKER recording 1 \d+\.\d{3} \d+\.\d{3} <NA> <NA> \S+ <NA> <NA>"
    assert all(re.fullmatch(pattern, line) for line in lines)


def test_a_recording_without_speech_is_an_empty_file() -> None:
    assert formats.render(Document((), media="x"), "rttm") == ""
    assert formats.find_suffix("rttm") == ".rttm"
