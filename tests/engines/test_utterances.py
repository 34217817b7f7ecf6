"""Utterances and CHAT out of words that were heard."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rustling.chat import CHAT
from rustling.textgrid import TextGrid

from prefork.engines.text import formats
from prefork.engines.text.document import Document, Timing, Turn, Utterance, Word
from prefork.engines.text.languages import get_long_code, get_short_code
from prefork.engines.text.spoken_numbers import spell_numbers
from prefork.engines.text.utterances import compose_utterances, strip_punctuation

B = "\x15"


def hear(text: str, step: float = 0.4) -> tuple[Word, ...]:
    """The words of a text, each 0.3 s long, `step` seconds apart; a number after | is seconds of more silence."""
    words, time = [], 0.0
    for token in text.split():
        if token.startswith("|"):
            time += float(token[1:])
            continue
        words.append(Word(token, round(time, 3), round(time + 0.3, 3), 0.9, Timing.SERVICE))
        time += step
    return tuple(words)


def compose(text: str, speakers: str = "", **options: Any) -> list[Utterance]:
    words = hear(text)
    return list(compose_utterances(words, list(speakers) or [None] * len(words), **options))


def get_texts(text: str, speakers: str = "") -> list[str]:
    return [utterance.text for utterance in compose(text, speakers)]


def write(text: str, *languages: str, speakers: str = "") -> str:
    """As CHAT that the strict reader accepts."""
    utterances = tuple(compose(text, speakers))
    document = Document(utterances, media="talk", languages=languages or ("eng",), heard=hear(text), seconds=60.0)
    result = formats.render(document, "chat")
    CHAT.from_strs([result], parallel=False, strict=True)
    return result


def get_mains(chat: str) -> list[str]:
    return [line.split(f" {B}")[0] for line in chat.splitlines() if line.startswith("*")]


@pytest.mark.parametrize(
    ("text", "utterances"),
    [
        ("So it is. Is it? It is! Good", ["So it is.", "Is it?", "It is!", "Good"]),
        ('He said "stop." Then he left.', ['He said "stop."', "Then he left."]),
        ("Mr. Smith met Dr. Jones. They talked.", ["Mr. Smith met Dr. Jones.", "They talked."]),
        ("J. F. Kennedy spoke. So did I. You heard.", ["J. F. Kennedy spoke.", "So did I.", "You heard."]),
        ("It is 3.5 or 4. |1 No.", ["It is 3.5 or 4.", "No."]),
        ("Am 3. Oktober kam er.", ["Am 3. Oktober kam er."]),
        ("The U.S. Army at 5 p.m. was there. |0.5 Yes", ["The U.S. Army at 5 p.m. was there.", "Yes"]),
        ("Well... I think so... Then no", ["Well...", "I think so...", "Then no"]),
        ("It was... you know... so", ["It was... you know... so"]),
        ("one two |3 three", ["one two", "three"]),
        ("one two |1.5 three", ["one two three"]),
        ("你好。 我 很好！ 是吗？ 好", ["你好。", "我 很好！", "是吗？", "好"]),  # noqa: RUF001
        ("कैसे हो। ठीक है।", ["कैसे हो।", "ठीक है।"]),
        ("كيف حالك؟ بخير.", ["كيف حالك؟", "بخير."]),
        ("well , you know .", ["well, you know."]),
        (", -- . ...", []),
        ("- hello - you", ["hello you"]),
        ("yes,no--but 3,500 at 5:30", ["yes, no-- but 3,500 at 5:30"]),
        ("个，好吗？是", ["个， 好吗？", "是"]),  # noqa: RUF001
        ("", []),
    ],
)
def test_utterances_end_with_sentences_and_at_pauses(text: str, utterances: list[str]) -> None:
    assert get_texts(text) == utterances


def test_utterances_end_where_the_speaker_changes() -> None:
    utterances = compose("I know you do not , he", "AABBBBA")
    assert [(u.speaker, u.text) for u in utterances] == [("A", "I know"), ("B", "you do not,"), ("A", "he")]
    assert [(u.start, u.end) for u in utterances] == [(0.0, 0.7), (0.8, 1.9), (2.4, 2.7)]


def test_words_keep_their_time_and_score_and_lose_their_punctuation() -> None:
    (utterance,) = compose('"Don’t, (goin’) well-known £3.50," &')  # noqa: RUF001
    assert [word.text for word in utterance.words] == ["Don’t", "goin’", "well-known", "£3.50", "&"]  # noqa: RUF001
    assert utterance.words[1] == Word("goin’", 0.4, 0.7, 0.9, Timing.SERVICE)  # noqa: RUF001


def test_words_without_times_make_utterances_without_times() -> None:
    words = [Word("Yes."), Word("No", 1.0, 1.5), Word("way")]
    utterances = compose_utterances(words, [None] * 3)
    assert [(u.text, u.start, u.end) for u in utterances] == [("Yes.", None, None), ("No way", 1.0, 1.5)]


def test_a_word_with_a_blank_in_it_becomes_two_that_share_its_time() -> None:
    (utterance,) = compose_utterances([Word(" New York.", 1.0, 2.0, 0.5, Timing.SERVICE)], [None])
    times = [(word.text, word.start, word.end, word.timing) for word in utterance.words]
    assert times == [("New", 1.0, 1.5, Timing.INTERPOLATED), ("York", 1.5, 2.0, Timing.INTERPOLATED)]


def test_speech_without_punctuation_is_cut_at_its_longest_pauses_and_at_clauses() -> None:
    text = " ".join(["so"] * 40 + ["then,"] + ["so"] * 40 + ["|1"] + ["so"] * 40)
    utterances = compose(text)
    assert [len(u.words) for u in utterances] == [41, 40, 40]
    assert max(len(u.words) for u in compose(" ".join(["so"] * 1000))) <= 60
    slow = compose_utterances([Word("so", i * 2.0, i * 2.0 + 1) for i in range(40)], [None] * 40)
    assert max((u.end or 0) - (u.start or 0) for u in slow) <= 30


WORD_TEXTS = st.text(min_size=0, max_size=8) | st.sampled_from(
    [
        "Mr.",
        "3.5",
        "...",
        "1961",
        "25%",
        "$5",
        "xxx",
        "&",
        "U.S.",
        "'cause",
        "0",
        "00",
        "+/.",
        "[/]",
        "@s",
        "%wor:",
        ",",
        "B",
    ]
)
LANGUAGES = ["eng", "deu", "fra", "zho", "ara", "hin", "xyz"]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(WORD_TEXTS, st.none() | st.floats(0, 3), st.sampled_from([None, "A", "PAR0", "SPEAKER_00"]))))
def test_no_letter_is_lost_whatever_is_heard(heard: list[tuple[str, float | None, str | None]]) -> None:
    words, time = [], 0.0
    for text, pause, _ in heard:
        time += pause or 0.0
        words.append(Word(text) if pause is None else Word(text, time, time + 0.2))
    utterances = compose_utterances(words, [speaker for *_, speaker in heard])
    said = [w.text for u in utterances for w in u.words]
    assert all(strip_punctuation(text) == text for text in said)
    letters = "".join(
        c for w in words for part in w.text.split() if strip_punctuation(part) for c in part if c.isalnum()
    )
    assert "".join(c for text in said for c in text if c.isalnum()) == letters


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(WORD_TEXTS, st.sampled_from([None, "A", "PAR0", "SPEAKER_00"])), max_size=12),
    st.sampled_from(LANGUAGES),
    st.booleans(),
)
def test_whatever_is_heard_becomes_strict_chat_with_a_time_for_every_word(
    heard: list[tuple[str, str | None]], language: str, video: bool
) -> None:
    words = tuple(Word(text, i * 0.5, i * 0.5 + 0.4, 0.5, Timing.SERVICE) for i, (text, _) in enumerate(heard))
    utterances = compose_utterances(words, [speaker for _, speaker in heard])
    document = Document(utterances, media="talk", languages=(language,), heard=words, seconds=9.0, video=video)
    result = formats.render(document, "chat")
    chat = CHAT.from_strs([result], parallel=False, strict=True)
    mains = get_mains(result)
    assert len(mains) == len(chat.utterances())
    declared = {line.split("|")[2] for line in result.splitlines() if line.startswith("@ID")}
    assert {main[1:].split(":")[0] for main in mains} <= declared
    again = formats.FORMATS["chat"].parse
    assert again is not None
    assert formats.render(again(result, "a.cha"), "chat").count("*") == result.count("*")
    for name in formats.OUTPUTS:
        formats.render(document, name)


@pytest.mark.parametrize(
    ("text", "language", "main"),
    [
        ("Well, in 1961 he paid £3.50, or 25%!", "eng",
         "Well , in nineteen sixty one he paid three pounds fifty , or twenty five percent !"),
        ("Mr. Smith came 3rd at 5 p.m. in the U.S.", "eng", "Mister Smith came third at five p_m in the U_S ."),
        ("R&B & more, 'cause I'm goin' on...", "eng", "R and B and more , 'cause I'm goin' on +..."),
        ("xxx said so.", "eng", "xxx said so ."),
        ("Ich zahle 25%, also 3,50 € am 3. Mai.", "deu",
         "Ich zahle fünfundzwanzig Prozent , also drei Komma fünf null am drei Mai ."),
        ("L’été 1998, c’est 21€?", "fra",  # noqa: RUF001
         "L'été mille neuf cent quatre-vingt-dix-huit , c'est vingt et un euros ?"),
        ("我 有 205 个，好吗？", "zho", "我 有 二百零五 个 , 好吗 ?"),  # noqa: RUF001
        ("عندي 3 كتب، هل تريد؟", "ara", "عندي ثلاثة كتب , هل تريد ?"),
        ("मेरे पास 12 हैं।", "hin", "मेरे पास 12 हैं ."),
        ("call 0800", "hin", "call xxx ."),
        ("two + two = four @ home +/.", "eng", "two plus two equals four at home ."),
        ("yes, --", "eng", "yes ."),
    ],
)  # fmt: skip
def test_chat_has_words_for_numbers_commas_apart_and_a_terminator(text: str, language: str, main: str) -> None:
    assert get_mains(write(text, language)) == [f"*SPK:\t{main}"]


def test_words_of_a_number_share_its_time_in_the_wor_tier() -> None:
    lines = write("in 1961.").splitlines()
    wor = next(line for line in lines if line.startswith("%wor:"))
    assert wor.replace(B, "") == "%wor:\tin 0_300 nineteen 400_550 sixty 550_644 one 644_700 ."


def test_commas_stand_in_the_wor_tier_and_what_was_not_understood_does_not() -> None:
    wor = next(line for line in write("xxx said, no.").splitlines() if line.startswith("%wor:"))
    assert wor.replace(B, "") == "%wor:\tsaid 400_700 , no 800_1100 ."


def test_speakers_get_codes_of_chat_in_the_order_in_which_they_speak() -> None:
    result = write("hi you there", "eng", "spa", speakers="xyx")
    assert "@Languages:\teng, spa\n@Participants:\tPAR0 Participant, PAR1 Participant\n" in result
    assert "@ID:\teng|prefork|PAR1|||||Participant|||\n" in result
    assert get_mains(result) == ["*PAR0:\thi .", "*PAR1:\tyou .", "*PAR0:\tthere ."]


def test_a_name_that_is_a_code_of_chat_stays_and_is_given_to_nobody_else() -> None:
    words = hear("one two three four")
    utterances = compose_utterances(words, ["speaker 1", "PAR0", "MOT", None])
    result = formats.render(Document(utterances, languages=("eng",), heard=words), "chat")
    assert get_mains(result) == ["*PAR1:\tone .", "*PAR0:\ttwo .", "*MOT:\tthree .", "*SPK:\tfour ."]
    people = "MOT Participant, PAR0 Participant, PAR1 Participant, SPK Speaker Unidentified"
    assert f"@Participants:\t{people}\n" in result


@pytest.mark.parametrize(("video", "header"), [(True, "@Media:\ttalk, video\n"), (False, "@Media:\ttalk, audio\n")])
def test_media_header_tells_video_from_audio(video: bool, header: str) -> None:
    document = Document(tuple(compose("hello")), media="talk", languages=("eng",), heard=hear("hello"), video=video)
    assert header in formats.render(document, "chat")


def test_a_recording_in_which_nothing_was_heard_can_be_written_in_every_format() -> None:
    document = Document((), media="talk", languages=("eng",), seconds=2.0)
    result = formats.render(document, "chat")
    assert not CHAT.from_strs([result], parallel=False, strict=True).utterances()
    assert "@Media:\ttalk, audio, unlinked\n" in result
    assert (
        TextGrid.from_strs([formats.render(document, "textgrid")], parallel=False).to_strs()[0].count("xmax = 2") == 5
    )
    assert [formats.render(document, name) for name in ("srt", "vtt", "ctm")] == ["", "WEBVTT\n", ""]
    content = json.loads(formats.render(document, "json"))
    assert content["utterances"] == [] and "turns" not in content


def test_json_has_the_turns_and_subtitles_the_punctuation() -> None:
    words = hear("Well, yes.")
    utterances = compose_utterances(words, ["A", "A"])
    document = Document(utterances, heard=words, turns=(Turn("A", 0.0, 1.23456),), seconds=2.0)
    assert json.loads(formats.render(document, "json"))["turns"] == [{"speaker": "A", "start": 0.0, "end": 1.235}]
    assert formats.render(document, "srt").endswith("Well, yes.\n")
    assert "<v A>Well, <00:00:00.400>yes.\n" in formats.render(document, "vtt")


def test_untimed_heard_numbers_stay_untimed() -> None:
    utterance = Utterance("21", (Word("21"),))
    result = formats.render(Document((utterance,), languages=("eng",), heard=(Word("21"),)), "chat")
    assert get_mains(result) == ["*SPK:\ttwenty one ."]
    assert "%wor" not in result


@pytest.mark.parametrize(
    ("token", "spoken"),
    [
        ("2005", "two thousand and five"), ("1,205", "one thousand two hundred and five"), ("1900", "nineteen hundred"),
        ("21st", "twenty first"), ("1960s", "nineteen sixties"), ("$1", "one dollar"), ("£5m", "five million pounds"),
        ("3:05", "three oh five"), ("3:00", "three o'clock"), ("-5", "minus five"), ("½", "one half"),
        ("007", "zero zero seven"), ("24/7", "twenty four seven"), ("COVID-19", "COVID nineteen"), ("MP3", "MP three"),
        ("٣", "three"), ("x²", "x two"), ("1234567890", "one two three four five six seven eight nine zero"),
        ("1.25%", "one point two five percent"), ("9" * 40, " ".join(["nine"] * 40)),
    ],
)  # fmt: skip
def test_numbers_are_spelt_as_they_are_spoken(token: str, spoken: str) -> None:
    assert " ".join(spell_numbers(token, "eng") or ()) == spoken


def test_numbers_of_languages_without_words_for_them_here_are_not_guessed() -> None:
    assert spell_numbers("12", "hin") is None
    assert spell_numbers("3.5", "xyz") is None
    assert spell_numbers("25%", "heb") == ("עשרים", "וחמש", "אחוז")
    assert spell_numbers("100010", "zho") == ("十万零一十",)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="0123456789.,:/%$€£-+stndrh'½²٣ kmA", max_size=12), st.sampled_from(LANGUAGES))
def test_any_number_is_spelt_without_a_digit_or_not_at_all(token: str, language: str) -> None:
    for word in spell_numbers(token, language) or ():
        assert word and not any(character.isdigit() for character in word)


def test_language_codes_go_both_ways() -> None:
    assert [get_long_code(code) for code in ("en", "de-AT", "jw", "cmn", "haw", "eng")] == [
        "eng", "deu", "jav", "cmn", "haw", "eng"
    ]  # fmt: skip
    assert [get_short_code(code) for code in ("eng", "zho", "cmn", "en", "yue")] == ["en", "zh", "zh", "en", "yue"]
