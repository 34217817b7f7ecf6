"""Plain texts as people have them: what of a line is spoken, by whom, and what is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import CONVERTER_CLASSES
from rustling.chat import CHAT

from prefork.engines.text import formats
from prefork.engines.text.document import Document
from prefork.engines.text.formats import text
from prefork.engines.text.languages import get_long_code
from prefork.engines.text.normalization import normalize
from tests.engines.chat_files import time
from tests.engines.chat_judge import judge


def read(*lines: str) -> Document:
    return text.parse("\n".join(lines), "a.txt")


def write(*lines: str) -> list[str]:
    """The main lines of the CHAT that becomes of a text, without times."""
    rendered = formats.render(read(*lines), "chat")
    CHAT.from_strs([rendered], parallel=False, strict=True)
    return [line for line in rendered.splitlines() if line.startswith("*")]


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Matt said 3.5% or $43,000.", "Matt said three point five percent or forty three thousand dollars"),
        ("It costs $12.50.", "It costs twelve dollars fifty"),
        ("(43000), 007!", "forty three thousand zero zero seven"),
        ("at 5:30 p.m., on Jan. 3rd, 2021", "at five thirty p_m on Jan third twenty twenty one"),
        ("R&B & you @ 5", "R and B and you at five"),
        ("Mr. Smith, etc.", "Mister Smith etcetera"),
        ("he's travelin' , 'tis the dogs' 'cause", "he's travelin' 'tis the dogs' 'cause"),
        ("'hello there' he said", "hello there he said"),
        ("\u2018\u2019tis\u2019 rock'n'roll", "\u2019tis rock'n'roll"),
        ("well--you know, and/or this\u2014that", "well you know and or this that"),
        ("an *emphasised* (quiet) word", "an emphasised quiet word"),
        ("AT&amp;T", "AT and T"),
    ],
)
def test_figures_are_spelled_out_and_apostrophes_stay(written: str, spoken: str) -> None:
    (line,) = normalize([written], "eng")
    assert " ".join(line.words) == spoken


@pytest.mark.parametrize(
    ("written", "language", "spoken"),
    [
        ("25%", "deu", "fünfundzwanzig Prozent"),
        ("um 5:30 für 12,50€", "de", "um fünf Uhr dreißig für zwölf Euro fünfzig"),
        ("3,5", "az", "üç nöqtə beş"),  # whose decimal sign num2words alone knows
        ("43000", "nob", "førtitre tusen"),
        ("år 2020", "sv", "år tvåtusentjugo"),
        ("25%", "cmn", "百分之二十五"),
    ],
)
def test_numerals_are_those_of_the_language(written: str, language: str, spoken: str) -> None:
    document = text.parse(written, "a.txt", language)
    assert " ".join(word.text for word in document.utterances[0].words) == spoken
    assert not document.warnings and document.languages == (get_long_code(language),)


@given(st.integers(0, 10**9 - 1), st.sampled_from(sorted(CONVERTER_CLASSES)))
@settings(max_examples=200, deadline=None)
def test_any_number_is_words_or_is_named(number: int, language: str) -> None:
    document = text.parse(f"a {number}", "a.txt", language)
    said = document.utterances[0].words[1].text
    unread = said == "xxx" or any(map(str.isdigit, said))
    assert unread == bool(document.warnings)


def test_what_no_language_is_known_for_is_said_once() -> None:
    document = text.parse("Mo 43000, 5:30.\nmo 007 43000!", "a.txt", "mri")
    named = "43000, 5:30, 007"
    assert document.warnings == (f"it is not known how {named} is read in the language 'mri'; write it in words",)


@pytest.mark.parametrize(
    ("written", "main"),
    [
        ("[Music] And so", "&=music And so ."),
        ("yes (laughs) no", "yes &=laughs no ."),
        ("yes *coughs*", "yes &=coughs ."),
        ("<i>so</i> <b>it</b> goes", "so it goes ."),
        ("{\\an8}so [00:01:02] it <00:00:01.500> goes", "so it goes ."),
        ("[clears throat] \u266a la la \u266a", "&=clears:throat la la ."),
        ("so [inaudible 00:12] <unk> it", "so xxx xxx it ."),
        ("<noise> so", "&=noise so ."),
        ("(door slams)", "&=door:slams ."),
        ("(he was right)?", "he was right ?"),
    ],
)
def test_tags_are_no_words(written: str, main: str) -> None:
    assert write(written, "well") == [f"*SPK:\t{main}", "*SPK:\twell ."]


@pytest.mark.parametrize(
    ("lines", "speakers"),
    [
        (["SPEAKER_00: yes", "SPEAKER_01: no", "it"], ["SPEAKER_00", "SPEAKER_01", None]),
        (["Speaker 1: yes", "one", "two"], ["Speaker 1", None, None]),
        (["MOM: yes", "KID: no"], ["MOM", "KID"]),
        (["John Smith: yes", "Dr. Lee: no", "and", "John Smith: so"], ["John Smith", "Dr. Lee", None, "John Smith"]),
        (["*CHI:\tyes", "so"], ["CHI", None]),
        (["[Anna]: yes", "so", "so"], ["Anna", None, None]),
        (["<v Mary>yes</v>", "so", "so"], ["Mary", None, None]),
        ([">> JOHN: yes", ">> ANN: no"], ["JOHN", "ANN"]),
        (["Note: this is it", "so", "so"], [None] * 3),
        (["It is 5:30 now", "at 10: ten"], [None] * 2),
    ],
)
def test_a_label_is_a_speaker(lines: list[str], speakers: list[str | None]) -> None:
    document = read(*lines)
    assert [utterance.speaker for utterance in document.utterances] == speakers
    assert all(word.text.lower() != "speaker" for u in document.utterances for word in u.words)


def test_a_text_without_labels_keeps_its_colons() -> None:
    assert write("Note: this is it", "so", "so")[0] == "*SPK:\tNote this is it ."


def test_what_is_left_out_is_said_once() -> None:
    document = read("xx write user@example.com", "xx again, (loud) \U0001f600 yes")
    (warning,) = formats.warn_of_losses(document, ["chat", "json"]).warnings
    assert warning == "CHAT cannot hold all of 2 words, whose rest is left out: xx, user@example.com"
    assert formats.warn_of_losses(read("all [Music] is 5 here!"), ["chat"]).warnings == ()
    assert formats.warn_of_losses(document, ["srt"]).warnings == ()


WRITTEN = (
    "[Music] And so my <i>fellow</i> Americans *coughs* ask (laughs) not.",
    "It costs $12.50. That's 25% of 1,200 and 'tis travelin' on *really* fine!",
    "Call me on Jan. 3rd, 2021, at 5:30 p.m. [inaudible 00:12:03] dogs' 'hello there' he said (he is right)?",
    "and/or 43000 well--you know R&B @ 3.5% 007 $5 user@example.com xx 1/2 24/7 'em rock'n'roll",
    "(door slams)",
    "MP3 and COVID-19, the 1990s, 4th of 12 at 0.5 x",
    "SPEAKER_00: Mr. Smith \u201cquoted\u201d it\u2026",
)


def test_the_chat_that_becomes_of_a_text_is_valid() -> None:
    result = formats.render(replace(time(read(*WRITTEN)), media="talk"), "chat")
    assert judge(result) == ""
    CHAT.from_strs([result], parallel=False, strict=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab 1.5%$:'\"()[]<>*&@/-xX,?!éÉ\u2019"), max_size=25), min_size=1, max_size=4))
def test_any_text_becomes_a_chat_file(lines: list[str]) -> None:
    document = read("well", *lines)
    assert all(mains.startswith("*") for mains in write("well", *lines))
    assert all(any(c.isalnum() for c in word.text) for u in document.utterances for word in u.words)
