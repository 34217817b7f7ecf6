"""CHAT: what is read, and that nothing but times and %wor tiers is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rustling.chat import CHAT

from prefork.engines.base import InputError
from prefork.engines.text import formats
from prefork.engines.text.document import Document, Utterance, Word
from tests.engines.chat_files import HEAD, B, make, time


def read(tmp_path: Path, source: str | bytes, name: str = "a.cha") -> Document:
    path = tmp_path / name
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return formats.read(path)


def rewrite(tmp_path: Path, source: str, name: str = "a.cha") -> str:
    result = formats.render(time(read(tmp_path, source, name)), "chat")
    CHAT.from_strs([result.removeprefix("\ufeff")], parallel=False, strict=True, mor_tier=None, gra_tier=None)
    return result


def get_wor(text: str) -> list[str]:
    return [line.removeprefix("%wor:\t") for line in text.splitlines() if line.startswith("%wor:")]


def test_words_times_speaker_media_and_languages_are_read(tmp_path: Path) -> None:
    document = read(tmp_path, make(f"*CHI:\tyou go . {B}1200_2050{B}\n*MOT:\tno ."))
    assert (document.media, document.languages, document.format) == ("foo", ("eng", "spa"), "chat")
    first, second = document.utterances
    assert (first.speaker, first.start, first.end, first.text) == ("CHI", 1.2, 2.05, "you go .")
    assert [word.text for word in first.words] == ["you", "go"]
    assert (second.speaker, second.start, second.end) == ("MOT", None, None)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        ("<I want> [/] I need it .", "I want I need it"),
        ("&-um &+fr &~gaga friend .", "um fr gaga friend"),
        ("xxx said yyy .", "xxx said yyy"),
        ("that's gonna [: going to] be .", "that's gonna be"),
        ("(be)cause 0is goo:d .", "cause good"),
        ("ice+cream thing@s:spa a^b .", "icecream thing ab"),
        ("what [x 3] is .", "what is"),
        ("<what is> [x 3] it .", "what is it"),
        ("&=laughs hello (.) (1.5) there [% quietly] [+ bch] .", "hello there"),
        ("&*MOT:mhm yes &*MOT:oh_yeah no .", "yes no"),
        ("⌈2yes⌉2 °soft° ↑up , you „ right ‡ .", "yes soft up you right"),
        ("\u201cquoted words\u201d he said .", "quoted words he said"),
        ("don't 'cause well-known 3.5 .", "don't 'cause well-known 3.5"),
        ("नमस्ते 你好 e\u0301te\u0301 .", "नमस्ते 你好 e\u0301te\u0301"),
        ("so I\n\twent on\n\t.", "so I went on"),
    ],
)
def test_words_are_what_the_speaker_utters(tmp_path: Path, main: str, words: str) -> None:
    document = read(tmp_path, make(f"*CHI:\t{main}"))
    assert " ".join(word.text for word in document.utterances[0].words) == words


@pytest.mark.parametrize(
    ("main", "events"),
    [
        ("&=laughs hello (.) there &=imit:dog .", ((0, "laughs"), (2, "imit"))),
        ("<so I> [/] &*MOT:mhm so .", ((2, "said"),)),
        (f"I &-um {B}1_2{B} &+fr 0is , &=coughs:loudly xxx .", ((3, "coughs"),)),
        ("very [x 3] good .", ((0, "repetition"), (1, "repetition"), (2, "repetition"))),
        ("no event [% &=laughs] .", ()),
    ],
)
def test_events_are_what_is_heard_besides_the_words(
    tmp_path: Path, main: str, events: tuple[tuple[int, str], ...]
) -> None:
    document = read(tmp_path, make(f"*CHI:\t{main}"))
    assert document.utterances[0].events == events
    assert rewrite(tmp_path, make(f"*CHI:\t{main}")).count("&=") == main.count("&=")


@pytest.mark.parametrize(
    ("main", "wor"),
    [
        ("<I want> [/] I go ?", "I 0_400 want 500_900 I 1000_1400 go 1500_1900 ?"),
        ("&-um &+fr &~gaga friend +...", "um 0_400 friend 1500_1900 +..."),
        ("xxx said yyy .", "said 500_900 ."),
        ("dis [: this] , you „ too +//?", "dis 0_400 , you 500_900 „ too 1000_1400 +//?"),
        ("[- spa] hola . [+ bch]", "[- spa] hola 0_400 ."),
    ],
)
def test_wor_tier_holds_the_words_of_talkbanks_rule(tmp_path: Path, main: str, wor: str) -> None:
    result = rewrite(tmp_path, make(f"*CHI:\t{main}"))
    assert get_wor(result)[0].replace(B, "") == wor


def test_words_without_a_time_stand_in_the_wor_tier_without_a_bullet(tmp_path: Path) -> None:
    document = read(tmp_path, make("*CHI:\tone two three ."))
    one, two, three = document.utterances[0].words
    words = (replace(one, start=0.1, end=0.2), two, replace(three, start=0.5, end=0.5))
    utterance = replace(document.utterances[0], words=words, start=0.1, end=0.5)
    result = formats.render(replace(document, utterances=(utterance,)), "chat")
    assert get_wor(result) == [f"one {B}100_200{B} two three ."]


@pytest.mark.parametrize("main", ["0 .", "&=laughs .", "xxx .", "&+fr &~gaga ."])
def test_utterance_without_words_for_it_gets_no_wor_tier(tmp_path: Path, main: str) -> None:
    result = rewrite(tmp_path, make(f"*CHI:\t{main}\n*MOT:\tyes ."))
    assert result.count("%wor") == 1


@pytest.mark.parametrize(
    ("main", "written"),
    [
        ("go .", f"go . {B}0_400{B}"),
        ("go . [+ bch] [+ exc]", f"go . [+ bch] [+ exc] {B}0_400{B}"),
        (f"go . {B}7_9{B}", f"go . {B}0_400{B}"),
        (f"go .{B}7_9{B}  ", f"go .{B}0_400{B}  "),
        (f"go . {B}7_9{B} [+ bch]", f"go . {B}0_400{B} [+ bch]"),
        (f"go . {B}7_9-{B}", f"go . {B}0_400{B}"),
        (f"go {B}abc{B} .  ", f"go {B}abc{B} . {B}0_400{B}  "),
        (f"go\n\t.\n\t{B}7_9{B}", f"go\n\t.\n\t{B}0_400{B}"),
    ],
)
def test_bullet_is_set_behind_the_terminator_or_where_one_was(tmp_path: Path, main: str, written: str) -> None:
    result = rewrite(tmp_path, make(f"*CHI:\t{main}"))
    assert f"*CHI:\t{written}\n%wor:" in result


def test_bullets_between_words_give_the_time_and_follow_the_words(tmp_path: Path) -> None:
    source = make(f"*CHI:\tgo {B}100_200{B} on &-um {B}200_300{B} . [+ bch]\n*MOT:\tno {B}9_8{B} (.) {B}1_2{B} yes .")
    document = read(tmp_path, source)
    assert (document.utterances[0].start, document.utterances[0].end) == (0.1, 0.3)
    assert formats.render(document, "chat") == source
    result = rewrite(tmp_path, source)
    assert f"*CHI:\tgo {B}0_400{B} on &-um {B}500_1400{B} . [+ bch] {B}0_1400{B}\n" in result
    assert f"*MOT:\tno {B}1500_1900{B} (.) yes . {B}1500_2400{B}\n" in result  # a pause has no time
    assert read(tmp_path, result).utterances[0].end == 1.4


def test_wor_tier_is_replaced_where_it_stands_and_otherwise_comes_last(tmp_path: Path) -> None:
    tiers = "%mor:\tv|go .\n%wor:\tgone\n\tgone .\n%com:\tlook\n\there"
    result = rewrite(tmp_path, make(f"*CHI:\tgo .\n{tiers}\n*MOT:\tno .\n%com:\tlate\n\n@Comment:\tbreak"))
    replaced = f"*CHI:\tgo . {B}0_400{B}\n%mor:\tv|go .\n%wor:\tgo {B}0_400{B} .\n%com:\tlook\n\there\n"
    assert replaced in result
    assert f"%com:\tlate\n%wor:\tno {B}500_900{B} .\n\n@Comment:\tbreak\n" in result


def test_media_header_says_unlinked_only_while_there_are_no_times(tmp_path: Path) -> None:
    source = make("*CHI:\tgo .").replace("foo, audio", "unlinked, audio, unlinked")
    assert formats.render(read(tmp_path, source), "chat") == source
    assert "@Media:\tunlinked, audio\n*CHI" in rewrite(tmp_path, source)


ODDITIES = make(
    "@Comment:\tspaces at the end   \n"
    f"*CHI:\tI want\n\tto go . {B}1_20{B} \n"
    "%mor:\tthis is | no mor tier\n%xyz:\tunknown  tier\n\twith a tail\n\n"
    "@New Episode\n*MOT:\t<no> [/] no [?] ! [+ bch]\n%act:\tnods"
)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("cut", [0, 1, 6])
def test_file_with_nothing_to_add_stays_byte_for_byte(tmp_path: Path, newline: str, mark: str, cut: int) -> None:
    source = mark + ODDITIES[: len(ODDITIES) - cut].replace("\n", newline)
    assert formats.render(read(tmp_path, source), "chat").encode() == source.encode()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_only_bullets_and_wor_tiers_are_added(tmp_path: Path, newline: str, mark: str) -> None:
    result = rewrite(tmp_path, mark + ODDITIES.replace("\n", newline))
    kept = [line for line in result.split(newline) if not line.startswith("%wor:")]
    restored = newline.join(kept).replace(f"{B}0_1900{B}", f"{B}1_20{B}").replace(f" {B}2000_2900{B}", "")
    assert restored == mark + ODDITIES.replace("\n", newline)
    assert result.count("%wor:") == 2


def test_missing_end_of_the_last_line_stays_missing(tmp_path: Path) -> None:
    source = (HEAD + "*CHI:\tgo .\n%com:\tcut off").replace("\n", "\r\n")
    result = rewrite(tmp_path, source)
    assert result.endswith(f"go . {B}0_400{B}\r\n%com:\tcut off\r\n%wor:\tgo {B}0_400{B} .")


def test_writing_twice_changes_nothing_more(tmp_path: Path) -> None:
    once = rewrite(tmp_path, ODDITIES)
    assert rewrite(tmp_path, once) == once


WORDS = ["go", "don't", "&-um", "&+fr", "&~ba", "xxx", "0is", "(be)cause", "goo:d", "a@l", "ice+cream", "dis [: this]"]
PIECES = [*WORDS, "<so I> [/]", "<the> [//]", "&=laughs", "(.)", "[!]", "\n\tand", ",", "„", "[= note]", "&*MOT:mhm"]
LINES = st.tuples(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map(lambda pieces: " ".join(["well", *pieces])),
    st.sampled_from([".", "?", "!", "+...", "+/.", "+//?"]),
    st.sampled_from(["", " [+ bch]", f" {B}5_9{B}", f"{B}5_9{B} ", "  "]),
    st.sampled_from(["", "\n%mor:\tnonsense", "\n%wor:\told one .", "\n%com:\ta\n\tb\n", "\n@Comment:\tx"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]))
def test_any_transcript_is_accepted_again_with_the_same_words(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str, str, str]], newline: str
) -> None:
    folder = tmp_path_factory.mktemp("any", numbered=True)
    body = "\n".join(f"*CHI:\t{text} {terminator}{end}{tiers}" for text, terminator, end, tiers in lines)
    source = make(body).replace("\n", newline)
    before = read(folder, source)
    timed = time(before)
    after = read(folder, formats.render(timed, "chat"))
    assert [u.words for u in after.utterances] == [u.words for u in before.utterances]
    assert [u.start for u in after.utterances] == pytest.approx([u.start for u in timed.utterances])
    assert formats.render(replace(timed, source=after.source), "chat") == after.source


@pytest.mark.parametrize(
    ("source", "reason", "remedy"),
    [
        ("just a text", "no @Begin", "as .txt"),
        ("", "no @Begin", "as .txt"),
        (make("*CHI:\tfine .\n*CHI:\tno end"), "line 9", "CHECK"),
        (make(f'*CHI:\tgo . {B}%snd:"a"_1_2{B}'), "line 8: a bullet in the old format", "FIXBULLETS"),
        (make("*CHI:\tgo .\n  *MOT:\tno ."), "line 9: a turn begins with white space", "remove"),
        (make("*CHI:\tgo .\n*MOT\tno ."), "line 9: a turn without a colon", "add it"),
        (make("*CHI:\tpâté .").encode("latin-1"), "not UTF-8 (line 8, byte 173)", "save it as UTF-8"),
    ],
)
def test_what_is_no_chat_is_refused_with_place_and_remedy(
    tmp_path: Path, source: str | bytes, reason: str, remedy: str
) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, source)
    message = str(error.value)
    assert message.startswith("a.cha: ")
    assert reason in message
    assert remedy in message


def test_a_reversed_bullet_is_told_as_it_stands_and_replaced_when_there_are_times(tmp_path: Path) -> None:
    """It costs its utterance's times, not the transcript."""
    document = read(tmp_path, make(f"*CHI:\tgo . {B}200_100{B}\n*MOT:\tno . {B}300_400{B}"))
    assert [(u.start, u.end) for u in document.utterances] == [(0.2, 0.1), (0.3, 0.4)]
    assert formats.render(time(document), "chat").count("200_100") == 0


def test_transcripts_of_real_recordings_round_trip(tmp_path: Path, shared: Path) -> None:
    paths = sorted((shared / "data" / "speech").rglob("*.cha"))
    assert paths
    for path in paths:
        document = formats.read(path)
        assert formats.render(document, "chat").encode() == path.read_bytes()
        timed = time(document)
        again = read(tmp_path, formats.render(timed, "chat"))
        assert [u.words for u in again.utterances] == [u.words for u in document.utterances]


def test_plain_text_becomes_a_valid_chat_file(tmp_path: Path) -> None:
    text = "\ufeffHello there, don\u2019t (go)!\n\n\u2014 is it 3.5 or 0800?\nxx\n0\n"
    document = time(read(tmp_path, text, "my talk.txt"))
    result = formats.render(document, "chat")
    assert "@Media:\tmy talk, audio\n" in result
    assert f"*SPK:\tHello there don't go ! {B}0_1900{B}\n" in result
    said = "is it three point five or zero eight zero zero"
    assert f"*SPK:\t{said} ? {B}2000_6900{B}\n%wor:\tis {B}2000_2400{B}" in result
    assert f"*SPK:\tzero . {B}7500_7900{B}" in result  # xx means nothing in CHAT
    again = read(tmp_path, result)
    assert [len(u.words) for u in again.utterances] == [4, 10, 1]


@pytest.mark.parametrize(
    ("line", "main"),
    [
        ("@End of story", "End of story ."),
        ("%wor: *CHI: go?", "wor CHI go ?"),
        ("a\tb\x07c [/] d & +... \x15", "a bc d and ."),
        ("go " * 20_000, "go " * 20_000 + "."),
    ],
)
def test_marks_of_chat_in_a_plain_text_mean_nothing(tmp_path: Path, line: str, main: str) -> None:
    result = rewrite(tmp_path, line, "a.txt")
    assert result.partition("*SPK:\t")[2].partition(f" {B}")[0] == main


@settings(max_examples=150, deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_any_text_becomes_a_chat_file_or_nothing(text: str) -> None:
    words = tuple(Word(word, 0.0, 0.5) for word in text.split())
    document = Document((Utterance(text, (*words, Word("end", 1.0, 1.5)), None, 0.0, 2.0),))
    result = formats.render(document, "chat")
    reread = CHAT.from_strs([result], parallel=False, strict=True)
    assert [u.time_marks for u in reread.utterances()] == [(0, 2000)]
    assert get_wor(result)[0].endswith((f"end {B}1000_1500{B} .", f"end {B}1000_1500{B} ?", f"end {B}1000_1500{B} !"))
