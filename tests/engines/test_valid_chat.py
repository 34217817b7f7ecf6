"""What comes out is valid wherever what went in was, by TalkBank's own parser and by rustling's strict reader; and
nothing else changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rustling.chat import CHAT

from prefork.engines.errors import InputError
from prefork.engines.text import formats
from prefork.engines.text.document import Document
from prefork.engines.text.formats import FORMATS, chat
from prefork.engines.text.formats.chat_grammar import find_glued_terminator, find_terminator, list_tokens
from tests.engines.chat_files import HEAD, B, make, tag, time
from tests.engines.chat_judge import judge

BARE = HEAD.replace("@Media:\tfoo, audio\n", "")
CA = HEAD.replace("@ID", "@Options:\tCA\n@ID", 1)


def end(head: str, *lines: str) -> str:
    return "\n".join([head.rstrip(), *lines, "@End", ""])


def read(source: str) -> Document:
    document = chat.parse(source, "a.cha")
    return document if document.media else replace(document, media="foo")


def write_times(source: str) -> str:
    return formats.render(time(read(source)), "chat")


def write_grammar(source: str) -> str:
    return formats.render(tag(read(source)), "chat")


def get(text: str, name: str) -> list[str]:
    return [line.partition("\t")[2] for line in text.replace(B, "|").splitlines() if line.startswith(name)]


def strip_times(text: str) -> str:
    """Without what may be new in a transcript with times."""
    kept = [line for line in text.splitlines() if not line.startswith(("%wor:", "@Media:"))]
    return re.sub(rf" ?{B}[^{B}]*{B}", "", "\n".join(kept))


def strip_grammar(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith(("%mor:", "%gra:")))


WORDS = (
    "to",
    "friend",
    "here@q",
    "it's",
    "(be)cause",
    "no:",
    "\u201cgone\u201d",
    "<so I> [?]",
    "dis [: this]",
    "xxx",
    "&*MOT:mhm",
    "ice+cream",
)
ENDS = (".", "?", "!", "+...", "+..?", "+/.", "+/?", "+//.", "+//?", "+!?", '+".', '+"/.', "+.")
GLUED = [
    f"*CHI:\twell {word}{terminator}{tail}"
    for number, word in enumerate(WORDS)
    for terminator in ENDS
    for tail in (("", " [+ bch]", " [+ bch] [+ exc]")[number % 3],)
    if not (word.startswith("&*") and terminator.startswith("+"))
]


@pytest.mark.parametrize("terminator", ENDS)
@pytest.mark.parametrize("word", ["to", "here@q", "[!]", "<so>", "xxx"])
def test_a_terminator_that_touches_what_it_ends_is_one(word: str, terminator: str) -> None:
    main = f"*CHI:\twell {word}{terminator} [+ bch] {B}1_2{B}"
    place = find_glued_terminator(main)
    assert place is not None and main[place:].startswith(terminator)
    assert find_terminator(main) == terminator == list_tokens(main, ("eng",))[0][-1].text
    spaced = f"{main[:place]} {main[place:]}"
    assert find_glued_terminator(spaced) is None
    assert list_tokens(spaced, ("eng",)) == list_tokens(main, ("eng",))


@pytest.mark.parametrize("main", ["so +...", "so .", "so (1.2)", "so ↗", 'so +"/.', "", "3.5 so", "+.. so"])
def test_a_terminator_of_its_own_touches_nothing(main: str) -> None:
    assert find_glued_terminator(f"*CHI:\t{main}") is None


def test_tiers_of_lines_with_a_glued_terminator_are_valid() -> None:
    source = end(HEAD, *(line for main in GLUED for line in (main, "%com:\tx")))
    assert judge(source.replace(", audio", ", audio, unlinked")) == ""
    assert judge(write_times(source)) == ""
    tagged = write_grammar(source.replace(", audio", ", audio, unlinked"))
    assert judge(tagged) == ""
    assert len(get(tagged, "%mor")) == len(GLUED)
    assert all(line.split()[-1] in ENDS for line in get(write_times(source), "%wor") + get(tagged, "%mor"))


CA_LINES = (
    "*CHI:\thello there my friend",
    "*MOT:\thow are you today ⇗",
    "*CHI:\t(1.2)",
    "*CHI:\t&=laughs",
    "*MOT:\tfriend!",
    "*MOT:\tyes .",
)


def test_tiers_of_lines_without_a_terminator_have_one() -> None:
    source = end(CA, *CA_LINES)
    assert judge(source.replace(", audio", ", audio, unlinked")) == ""
    timed = write_times(source)
    assert judge(timed) == ""
    assert [line.split()[-1] for line in get(timed, "%wor")] == [".", ".", "!", "."]
    tagged = write_grammar(source.replace(", audio", ", audio, unlinked"))
    assert judge(tagged) == ""
    assert [line.split()[-1] for line in get(tagged, "%mor")] == [".", ".", "!", "."]
    for line in CA_LINES:
        assert f"\n{line}\n" in tagged


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("head", "name", "header"),
    [
        (BARE, "foo", "@Media:\tfoo, audio"),
        (BARE, "my talk, 2", '@Media:\t"my talk, 2", audio'),
        (HEAD.replace(", audio", ", audio, unlinked"), "other", "@Media:\tfoo, audio"),
    ],
)
def test_times_say_of_what_recording_they_are(head: str, name: str, header: str, newline: str) -> None:
    source = end(head, "*CHI:\tgo .", "*MOT:\tno .").replace("\n", newline)
    result = formats.render(replace(time(read(source)), media=chat.parse(source, "").media or name), "chat")
    assert f"Mother|||{newline}{header}{newline}*CHI" in result
    assert result.count("@Media") == 1
    assert newline == "\n" or "\n" not in result.replace("\r\n", "")
    assert judge(result.replace("\r\n", "\n")) == ""
    CHAT.from_strs([result], parallel=False, strict=True, mor_tier=None, gra_tier=None)


def test_a_recording_that_is_a_film_is_a_video() -> None:
    result = formats.render(replace(time(read(end(BARE, "*CHI:\tgo ."))), video=True), "chat")
    assert "@Media:\tfoo, video\n*CHI" in result


def test_stress_and_other_marks_are_no_part_of_words_in_wor() -> None:
    source = end(
        HEAD, "*CHI:\t\u02c8hel \u02c8fa\u02ccther ↑up °soft° ⌈both⌉ a:nd ba^na ∆fast∆ (be)cause ice+cream l@l ."
    )
    result = write_times(source)
    assert judge(result) == ""
    words = re.sub(r" \|[^|]*\|", "", get(result, "%wor")[0])
    assert words == "hel father up soft both and bana fast cause icecream l ."


@pytest.mark.parametrize("write", [write_grammar, lambda source: formats.render(read(source), "chat")])
def test_times_are_written_only_by_those_who_have_them(write: Callable[[str], str]) -> None:
    lines = (
        f"*CHI:\thello {B}0_800{B} there {B}800_1500{B} .",
        f"*MOT:\tno . {B}9_5{B}",
        f"*MOT:\tgo . {B}5_9{B}",
        "*CHI:\tno .",
    )
    source = end(HEAD.replace(", audio", ", audio, unlinked"), *lines)
    assert strip_grammar(write(source)) == source.rstrip("\n")
    assert strip_grammar(write(end(BARE, *lines))) == end(BARE, *lines).rstrip("\n")


def test_only_the_utterances_with_new_times_get_them() -> None:
    source = end(HEAD, f"*CHI:\tgo {B}1_2{B} on .", "%wor:\told .", f"*MOT:\tno . {B}5_9{B}")
    document = read(source)
    timed = time(document).utterances[1]
    result = formats.render(replace(document, utterances=(document.utterances[0], timed)), "chat")
    assert (
        f"*CHI:\tgo {B}1_2{B} on .\n%wor:\told .\n*MOT:\tno . {B}1000_1400{B}\n%wor:\tno {B}1000_1400{B} .\n" in result
    )


def test_bullets_between_words_agree_with_the_new_times() -> None:
    source = end(
        HEAD,
        f"*CHI:\thello there {B}3000_8000{B} my friend . {B}8000_15000{B}",
        f"*MOT:\tno {B}1_2{B} (.) {B}2_3{B} yes .",
    )
    result = write_times(source)
    assert get(result, "*") == ["hello there |0_900| my friend . |0_1900|", "no |2000_2400| (.) yes . |2000_2900|"]
    assert judge(result) == ""
    (warning,) = formats.warn_of_losses(time(read(source)), ["chat"]).warnings
    assert warning == "line 9: bullets between words that have no times are gone"
    assert formats.warn_of_losses(read(source), ["chat", "json"]).warnings == ()
    assert write_times(result) == result


VALID = (
    "*MOT:\tbut what if they +!?",
    "*MOT:\the said \u201cwait (..)\u201d and went .",
    "*MOT:\tab@l is it .",
    "*MOT:\tb@l, well (.)‡ we've@si, got (.), it .",
    "*MOT:\t<at the pool> [//] at (.)<and well> [//] it .",
    "*MOT:\txxx.",
    "*MOT:\t0.",
)


@pytest.mark.parametrize("line", VALID)
def test_lines_that_rustling_alone_refuses_are_read(line: str) -> None:
    source = end(HEAD, "*CHI:\tgo .", line)
    assert strip_times(write_times(source)) == strip_times(source)
    assert strip_grammar(write_grammar(source)) == source.rstrip("\n")


def test_what_rustling_alone_refuses_comes_out_valid() -> None:
    source = end(HEAD, *(line for line in VALID if "\u201c" not in line))  # which chatter does not take either
    assert judge(write_times(source)) == ""
    assert judge(write_grammar(source.replace(", audio", ", audio, unlinked"))) == ""


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("2;03.", "1;8.13", "age months"),
        ("@ID:\teng|x|CHI|2;03.||||Target_Child|||\n", "", "@ID"),
        ("eng|x|CHI|2;03.||||", "eng|x|CHI|2;03.|||rich|", "SES"),
        ("Mother|||", "Aunt|||", "role"),
        ("@Media", "@Options:\tnonsense\n@Media", "@Options"),
        ("@UTF8\n", "", "@UTF8"),
        ("Target_Child, MOT", "Target_Child MOT", ""),
    ],
)
def test_a_fault_of_a_header_costs_a_warning(old: str, new: str, fault: str) -> None:
    source = make("*MOT:\tgood morning .").replace(old, new)
    document = read(source)
    assert [word.text for word in document.utterances[0].words] == ["good", "morning"]
    (warning,) = document.warnings
    assert warning.startswith("its headers are not valid CHAT: ") and fault in warning
    assert strip_grammar(write_grammar(source)) == source.rstrip("\n")
    assert strip_times(write_times(source)) == strip_times(source)


@pytest.mark.parametrize("ses", ["White,MC", "White MC", "Asian", "UC", "Latino,LI"])
def test_socioeconomic_fields_that_talkbank_takes_cost_nothing(ses: str) -> None:
    source = make("*MOT:\tyes .").replace("2;03.||||", f"2;03.|||{ses}|").replace(", audio", ", audio, unlinked")
    assert judge(source) == ""
    assert read(source).warnings == ()


def test_main_lines_are_read_strictly_whatever_the_headers_are() -> None:
    for head in (HEAD, HEAD.replace("2;03.", "1;8.13"), CA):
        with pytest.raises(InputError, match=r"line \d+: old & notation"):
            read(end(head, "*CHI:\tgo .", "*CHI:\t&um no ."))
    with pytest.raises(InputError, match=r"line 9: utterance missing terminator"):
        read(end(HEAD, "*CHI:\tgo .", "*CHI:\tno"))


@pytest.mark.parametrize("line", ["xx go .", "go <xx> [?] .", "go xx.", "yy", "“xx” ."])
def test_an_obsolete_word_costs_its_utterance(line: str) -> None:
    line += "" if line.endswith(".") else " ."
    source = end(HEAD, "*CHI:\tgo .", f"*CHI:\t{line} {B}5_9{B}", "%mor:\told", "%wor:\told .", "*MOT:\tno xxx .")
    document = read(source)
    assert [len(u.words) for u in document.utterances] == [1, 0, 2]
    (warning,) = document.warnings
    assert warning.startswith("line 9: ") and "is no longer CHAT" in warning
    kept = f"*CHI:\t{line} {B}5_9{B}\n%mor:\told\n%wor:\told .\n*MOT:"
    assert kept in write_times(source) and kept in write_grammar(source)


@pytest.mark.parametrize("lines", [(), ("*CHI:\t0 .",), ("*CHI:\t&=laughs .", f"*MOT:\t(1.2) . {B}1_2{B}")])
def test_a_transcript_without_words_comes_through_with_a_notice(tmp_path: Path, lines: tuple[str, ...]) -> None:
    path = tmp_path / "a.cha"
    path.write_text(end(HEAD, *lines))
    document = formats.read(path)
    assert document.warnings == ("has no words; it stays as it is",)
    for name in FORMATS:
        if FORMATS[name].render:
            rendered = formats.render(document, name)
            assert name != "chat" or rendered == path.read_text()


def test_old_tiers_stay_where_no_new_ones_are_written() -> None:
    tiers = ("%mor:\tpron|I verb|need .", "%gra:\t1|2|NSUBJ 2|0|ROOT 3|2|PUNCT")
    source = end(HEAD, "*CHI:\txxx .", *tiers, "*CHI:\tI see °xxx° it .", *tiers, "*CHI:\tgo .", *tiers)
    result = write_grammar(source)
    assert result.count("\n".join(tiers)) == 2
    assert result.endswith("*CHI:\tgo .\n%mor:\tnoun|go .\n%gra:\t1|0|ROOT 2|1|DEP\n@End\n")


PIECES = [
    "go",
    "don't",
    "&-um",
    "&+fr",
    "xxx",
    "0is",
    "(be)cause",
    "goo:d",
    "a@l",
    "ice+cream",
    "dis [: this]",
    "<so I> [/]",
]
MORE = [
    "&=laughs",
    "(.)",
    "[!]",
    ",",
    "„",
    "[= note]",
    "&*MOT:mhm",
    "°soft°",
    "\u02c8main",
    f"{B}1_2{B}",
    "⌈both⌉",
    "(1.2)",
]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*PIECES, *MORE]), min_size=1, max_size=8),
    st.sampled_from(["", " "]),
    st.sampled_from(ENDS),
    st.sampled_from(["", " [+ bch]", f" {B}5_9{B}", f"{B}5_9{B}"]),
)
def test_any_line_keeps_everything_but_its_times_and_tiers(
    pieces: list[str], gap: str, terminator: str, tail: str
) -> None:
    source = end(HEAD, f"*CHI:\twell {' '.join(pieces)} yes{gap}{terminator}{tail}", "%com:\tx")
    timed, tagged = write_times(source), write_grammar(source)
    assert strip_times(timed) == strip_times(source)
    assert strip_grammar(tagged) == source.rstrip("\n")
    (wor,) = get(timed, "%wor")
    assert wor.split()[-1] == terminator
    assert all(tier.split()[-1] == terminator for tier in get(tagged, "%mor"))
    assert write_times(timed) == timed and write_grammar(tagged) == tagged
