"""CHAT's main lines and %mor: what counts, that nothing but tiers is written, and that words can be cut anew."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rustling.chat import CHAT

from prefork.engines.errors import InputError
from prefork.engines.stanza.retokenization import Analysis, RawToken, fill, merge
from prefork.engines.text import formats
from prefork.engines.text.document import Document, SyntacticWord, Token, TokenKind, Utterance, Word
from prefork.engines.text.formats import FORMATS, chat, chat_output
from prefork.engines.text.formats.chat_grammar import list_tokens, place_tokens, retokenize_main, settle
from tests.engines.chat_files import HEAD, B, analyse, make, tag


def strip_tiers(text: str) -> str:
    return re.sub(r"^%(?:mor|gra):[^\n]*(?:\n|\Z)", "", text, flags=re.MULTILINE)


def read_strictly(text: str) -> CHAT:
    return CHAT.from_strs([text.removeprefix("\ufeff")], parallel=False, strict=True)


def get_tier(text: str, name: str) -> list[str]:
    return [line.removeprefix(f"%{name}:\t") for line in text.splitlines() if line.startswith(f"%{name}:")]


# A main line, and its tokens by the manual's rules. https://talkbank.org/0info/manuals/CHAT.html
MAIN_LINES = [
    ("I want a cookie .", "I want a cookie ."),
    # retracing
    ("the [/] the dog .", "the dog ."),
    ("<I want> [/] I need it .", "I need it ."),
    ("<the dog> [//] the cat .", "the cat ."),
    ("<all of> [///] none is here .", "none is here ."),
    ("well [/-] so it is .", "so it is ."),
    ("I <want> [/?] need .", "I need ."),
    ("<the <big> [/] big dog> [//] the cat .", "the cat ."),
    ("<so <big> [/] big dog> [>] ran .", "so big dog ran ."),
    ("<<a b> [?]> [/] a b .", "a b ."),
    ("<dat [: that] is> [/] is broken .", "is broken ."),
    ("tika@u [: kitty] [* p:n] [//] kitty is nice .", "kitty is nice ."),
    ("male [: female] [* s:r] [/] male [: female] [* s:r] .", "female ."),
    ("foo [?] [/] foo .", "foo ."),
    ("foo [/] (.) foo .", "foo ."),
    ("foo [x 3] [/] foo .", "foo ."),
    ("foo [= what] [//] bar .", "bar ."),
    ("<yes , &-um you> [//] no .", "no ."),
    ("&-um [/] &-um ok .", "ok ."),
    ("foo[/] foo .", "foo ."),
    # exclusion
    ("this is <that one> [e] mine .", "this is mine ."),
    ("this [e] [?] mine .", "mine ."),
    # what is no word
    ("&-um &+fr &~gaga friend .", "friend ."),
    ("xxx said yyy www .", "said ."),
    ("xxx: said .", "said ."),
    ("&=laughs hello (.) (..) (...) (1.5) (1:05.5) there .", "hello there ."),
    ("he 0is 0det good .", "he good ."),
    ("0 good .", "good ."),
    ("yes &*MOT:mhm no &*MOT:oh_yeah .", "yes no ."),
    ("&{l=X hello there &}l=X .", "hello there ."),
    ("a → b ; c : d .", "a b c d ."),
    ("foo [^ text] [^c] ok .", "foo ok ."),
    # replacements
    ("that's gonna [: going to] be .", "that's going to be ."),
    ("gonna [:: going to] be .", "gonna be ."),
    ("rocking+house [: rocking+horse] [*] ?", "rockinghorse ?"),
    ("foo [* m] [: b(ar) (ba)z:] ok .", "bar baz ok ."),
    ("foo [: 0] ok .", "ok ."),
    ("<go [: going] there> [?] now .", "going there now ."),
    # codes that change nothing
    ("dis [* m] thing [?] here [!] now [!!] .", "dis thing here now ."),
    ("<he said> [= it's <so>] ok [=! shouting] .", "he said ok ."),
    ("hi [% text] what [x 3] is [=? as] .", "hi what is ."),
    ("<hi there> [<] yes [>] no [>1] .", "hi there yes no ."),
    ("go . [+ bch] [+ exc]", "go ."),
    ('+" I go .', "I go ."),
    ("++ I go .", "I go ."),
    ("+^ I go .", "I go ."),
    ("+, I go .", "I go ."),
    ("+< I go .", "I go ."),
    (f"go {B}100_200{B} on . {B}100_300{B}", "go on ."),
    (f"go . {B}100_300{B} [+ bch]", "go ."),
    # marks in words
    ("↑hi ⌈you two⌉ °soft° ∆fast now∆ no:: .", "hi you two soft fast now no ."),
    ("hey ⌊2really⌋2 foo⌈bar⌉ .", "hey really foobar ."),
    ("(be)cause ge(t) (a)bou(t) .", "because get about ."),
    ("ice+cream in New_York le~ha rhi^no .", "icecream in New_York leha rhino ."),
    ("≠foo ↫b-b-b↫boy ˈhello .", "foo boy hello ."),  # noqa: RUF001
    ("go \x02\x01home\x02\x02 now .", "go home now ."),
    ("well-known 'cause dogs' don't o'clock .", "well-known 'cause dogs' don't o'clock ."),
    ("“quoted words” he said .", "quoted words he said ."),
    ("‹il y a› 〔bar baz〕 ok .", "il y a bar baz ok ."),  # noqa: RUF001
    ("perro@s gato@s:spa x@s:eng&spa y@s:eng+spa .", "perro gato x y ."),
    ("b@l woof@o gumma@c b@ls wug@t abc@z:rtfd bananas@s$n .", "b woof gumma b wug abc bananas ."),
    ("um@fp stuff@x lalala@si .", "um stuff lalala ."),
    # tag markers
    ("hi, you , know „ right ‡ yes .", "hi , you , know „ right ‡ yes ."),
    ("xxx, ok .", ", ok ."),
    # terminators
    ("what ?", "what ?"),
    ("go !", "go !"),
    ("well +...", "well +..."),
    ("well +..?", "well +..?"),
    ("you go +/.", "you go +/."),
    ("you go +//.", "you go +//."),
    ("you go +/?", "you go +/?"),
    ("you go +//?", "you go +//?"),
    ('he said +"/.', 'he said +"/.'),
    ('he said +".', 'he said +".'),
    ("go +.", "go +."),
    ("go.", "go ."),
    ("the U.S. .", "the U.S. ."),
    # nothing to analyse
    ("0 .", "."),
    ("xxx .", "."),
    ("&=laughs .", "."),
    ("&-um +...", "+..."),
    ("0 [= did nothing] .", "."),
    ("xxx , yyy .", ", ."),
    ("+< xxx +/.", "+/."),
    # scripts, lines
    ("مرحبا يا صديق .", "مرحبا يا صديق ."),
    ("\u200fשלום , שלום ?", "שלום , שלום ?"),  # noqa: RUF001
    ("नमस्ते 你好 e\u0301te\u0301 .", "नमस्ते 你好 e\u0301te\u0301 ."),
    ("Ἡ καλή Ἡhello .", "καλή hello ."),
    ("so I\n\twent on\n\t.", "so I went on ."),
    ("[- spa] hola amigo .", "hola amigo ."),
]
REFUSED = {"Ἡ καλή Ἡhello ."}  # rustling counts the sign for laughter where it stands alone


@pytest.mark.parametrize(("main", "expected"), MAIN_LINES)
def test_tokens_are_what_the_manual_counts(main: str, expected: str) -> None:
    document = chat.parse(make(f"*CHI:\t{main}"), "a.cha")
    tokens = document.utterances[0].tokens
    assert [token.text for token in tokens] == expected.split()
    assert [token.kind for token in tokens[-1:]] == [TokenKind.TERMINATOR]
    assert all((token.kind is TokenKind.SEPARATOR) == (token.text in set(",„‡")) for token in tokens)


def test_strict_reader_takes_a_tier_for_every_main_line() -> None:
    assert len(MAIN_LINES) >= 60
    source = make("\n".join(f"*CHI:\t{main}" for main, _ in MAIN_LINES))
    document = chat.parse(source, "a.cha")
    result = chat_output.render(tag(document))
    assert strip_tiers(result) == source
    read = read_strictly(result).utterances()
    assert len(read) == len(MAIN_LINES)
    for utterance, (main, expected) in zip(read, MAIN_LINES, strict=True):
        texts = expected.split()
        if len(set(texts) - set(",„‡")) == 1 or main in REFUSED:
            assert utterance.tiers is not None
            assert "%mor" not in utterance.tiers
        else:
            read_tokens = [token for token in utterance.tokens or () if token.word]
            assert len(read_tokens) == len(texts)
            assert all(token.gra and token.mor for token in utterance.tokens or ())


@pytest.mark.parametrize(
    "main",
    [
        "+≈ ok .",
        "ok ⇗ well .",
        "↑ foo .",
        "xxx@s:spa ok .",
        "°&-um° ok .",
        "foo‡ bar .",
        "foo [#] bar .",
        "foo + bar .",
    ],
)
def test_a_line_that_the_strict_reader_counts_otherwise_gets_no_tiers(main: str) -> None:
    source = make(f"*CHI:\t{main}\n*MOT:\tno .")
    result = chat_output.render(tag(chat.parse(source, "a.cha")))
    read_strictly(result)
    assert strip_tiers(result) == source
    assert get_tier(result, "mor") == ["noun|no ."]
    assert chat_output.find_uncountable(chat.parse(source, "a.cha")) == {0}


@pytest.mark.parametrize(
    ("main", "language", "words"),
    [
        ("my perro@s .", "", [("", ""), ("spa", "s")]),
        ("my perro@s:spa gato@s:eng .", "", [("", ""), ("spa", "s:spa"), ("", "s:eng")]),
        ("x@s:spa&eng y@s:deu+fra .", "", [("spa", "s:spa&eng"), ("deu", "s:deu+fra")]),
        ("[- spa] mi dog@s .", "spa", [("", ""), ("eng", "s")]),
        ("+< [- spa] mi dog@s:eng .", "spa", [("", ""), ("eng", "s:eng")]),
        ("[- eng] my perro@s .", "", [("", ""), ("spa", "s")]),
        ("[- deu] mein perro@s .", "deu", [("", ""), ("", "s")]),  # the manual: a third language has no @s
        ("foo [: perro@s] .", "", [("spa", "s")]),
        ("b@l bananas@s$n wug@z:t .", "", [("", "l"), ("spa", "s"), ("", "z:t")]),
    ],
)
def test_languages_and_markers(main: str, language: str, words: list[tuple[str, str]]) -> None:
    utterance = chat.parse(make(f"*CHI:\t{main}"), "a.cha").utterances[0]
    assert utterance.language == language
    assert [(token.language, token.marker) for token in utterance.tokens[:-1]] == words


def test_second_language_is_unknown_where_the_file_has_one() -> None:
    assert list_tokens("*CHI:\tmy perro@s .", ("eng",))[0][1] == Token("perro", marker="s")
    tokens, language = list_tokens("*CHI:\t[- spa] mi dog@s .", ("eng",))
    assert (tokens[1].language, language) == ("eng", "spa")
    assert list_tokens("*CHI:\t[- spa] mi dog@s .", ())[1] == "spa"


def test_conversation_analysis_needs_no_terminator() -> None:
    source = make("*CHI:\twell (ja) no").replace("@ID:\teng|x|CHI", "@Options:\tCA\n@ID:\teng|x|CHI", 1)
    document = chat.parse(source, "a.cha")
    assert [token.text for token in document.utterances[0].tokens] == ["well", "no"]
    assert read_strictly(chat_output.render(tag(document)))


ODDITIES = make(
    "@Comment:\tspaces at the end   \n"
    f"*CHI:\tI want\n\tto go . {B}1_20{B} \n"
    f"%wor:\tI {B}1_2{B} want {B}3_4{B}\n\tto {B}5_6{B} go .\n%xyz:\tunknown  tier\n\twith a tail\n\n"
    "@New Episode\n*MOT:\t<no> [/] no [?] ! [+ bch]\n%act:\tnods\n*CHI:\txxx .\n*MOT:\tand now ?"
)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("cut", [0, 1, 6])
def test_only_tiers_are_added(newline: str, mark: str, cut: int) -> None:
    source = (mark + ODDITIES[: len(ODDITIES) - cut]).replace("\n", newline)
    result = chat_output.render(tag(chat.parse(source, "a.cha")))
    read_strictly(result)
    lines = result.split(newline)
    assert newline.join(line for line in lines if not line.startswith(("%mor:", "%gra:"))) == source
    assert [len(get_tier(result, name)) for name in ("mor", "gra")] == [3, 3]
    assert result.endswith(newline) == source.endswith(newline)
    assert f"{newline}\tto go . {B}1_20{B} {newline}%mor:\tnoun|I" in result  # directly behind the main line


def test_old_tiers_are_replaced_or_kept() -> None:
    tiers = "%com:\tx\n%mor:\tv|go\n\t.\n%umor:\tv|go .\n%gra:\t1|0|ROOT 2|1|PUNCT"
    source = make(f"*CHI:\tgo .\n{tiers}\n*MOT:\tno .")
    document = chat.parse(source, "a.cha")
    assert [utterance.analysed for utterance in document.utterances] == [True, False]
    replaced = chat_output.render(tag(document))
    assert "*CHI:\tgo .\n%mor:\tnoun|go .\n%gra:\t1|0|ROOT 2|1|DEP\n%com:\tx\n*MOT:" in replaced
    kept = chat_output.render(replace(document, utterances=(document.utterances[0], tag(document).utterances[1])))
    assert f"*CHI:\tgo .\n{tiers}\n*MOT:\tno .\n%mor:" in kept
    assert chat_output.render(document) == source


def test_tiers_at_the_very_end_of_a_file_without_a_last_line_end() -> None:
    source = (HEAD + "*CHI:\tgo .\n%com:\tx\n%mor:\tv|go .").replace("\n", "\r\n")
    result = chat_output.render(tag(chat.parse(source, "a.cha")))
    assert result.endswith("*CHI:\tgo .\r\n%mor:\tnoun|go .\r\n%gra:\t1|0|ROOT 2|1|DEP\r\n%com:\tx")


def test_writing_twice_changes_nothing_more() -> None:
    once = chat_output.render(tag(chat.parse(ODDITIES, "a.cha")))
    assert chat_output.render(tag(chat.parse(once, "a.cha"))) == once


def test_a_clitic_has_one_item_and_two_relations() -> None:
    result = chat_output.render(tag(chat.parse(make("*CHI:\tI don't ."), "a.cha")))
    assert [item.count("~") for item in get_tier(result, "mor")[0].split()] == [0, 1, 0]
    assert [relation.partition("|")[0] for relation in get_tier(result, "gra")[0].split()] == ["1", "2", "3", "4"]


PIECES = [
    *["go", "don't", "&-um", "&+fr", "&~ba", "xxx", "0is", "(be)cause", "goo:d", "a@l", "ice+cream", "dis [: this]"],
    *["gonna [: going to]", "<so I> [/]", "<the> [//]", "&=laughs", "(.)", "[!]", "\n\tand", ",", "„", "[= note]"],
    *[
        "&*MOT:mhm",
        "perro@s",
        "°soft°",
        "⌈you⌉",
        "<big dog> [>]",
        "<big <very> [/] dog> [e]",
        "“no”",
        "[x 2]",
        "yo [*]",
    ],
]
LINES = st.tuples(
    st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: " ".join(["well", *pieces])),
    st.sampled_from([".", "?", "!", "+...", "+/.", "+//?"]),
    st.sampled_from(["", " [+ bch]", f" {B}5_9{B}", f"{B}5_9{B} ", "  "]),
    st.sampled_from(["", "\n%mor:\tnonsense", "\n%wor:\told one .", "\n%com:\ta\n\tb\n", "\n@Comment:\tx"]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]))
def test_any_transcript_gets_tiers_that_the_strict_reader_takes(
    lines: list[tuple[str, str, str, str]], newline: str
) -> None:
    body = "\n".join(f"*CHI:\t{text} {terminator}{end}{tiers}" for text, terminator, end, tiers in lines)
    source = make(body).replace("\n", newline)
    result = chat_output.render(tag(chat.parse(source, "a.cha")))
    assert get_tier(result, "mor")
    assert len(get_tier(result, "mor")) == len(get_tier(result, "gra"))
    read_strictly(result)
    assert strip_tiers(result) == strip_tiers(source)


def test_transcripts_of_real_recordings_get_tiers_and_nothing_else(shared: Path) -> None:
    paths = sorted((shared / "data" / "speech").rglob("*.cha"))
    assert paths
    for path in paths:
        source = path.read_bytes().decode()
        result = chat_output.render(tag(chat.parse(source, path.name)))
        assert strip_tiers(result) == source
        read = read_strictly(result).utterances()
        assert all(token.gra for utterance in read for token in utterance.tokens or ())
        mains = re.findall(r"^\*\w+:\t(.*?)(?: \x15.*)?$", source, re.MULTILINE)
        tokens = [[token.text for token in u.tokens] for u in chat.parse(source, path.name).utterances]
        assert tokens == [main.split() for main in mains]


# words cut anew


def find(text: str, *parts: str) -> list[tuple[str, int, int]]:
    position = 0
    found = []
    for part in parts:
        start = text.index(part, position)
        position = start + len(part)
        found.append((part, start, position))
    return found


@pytest.mark.parametrize(
    ("main", "parts", "written"),
    [
        ("I gonna go .", "I gon na go .", "I gon na go ."),
        ("<I gonna> [/] I gonna go .", "I gon na go .", "<I gonna> [/] I gon na go ."),
        ("I cannot [?] go .", "I can not go .", "I cannot [?] go ."),  # to which of them would the code belong?
        ("gimme@c gimme .", "gim me gim me .", "gimme@c gim me ."),
        ("gimme [: lemme] gimme .", "lem me gim me .", "gimme [: lemme] gim me ."),
        ("<gimme it> [>] now .", "gim me it now .", "<gim me it> [>] now ."),
        (f"gimme it {B}1_2{B} . {B}1_2{B}", "gim me it .", f"gim me it {B}1_2{B} . {B}1_2{B}"),
        ("(be)cause gimme .", "be cause gimme .", "(be)cause gimme ."),
        ("mm-hmm yes .", "mm - hmm yes .", "mm-hmm yes ."),  # a hyphen is no word
    ],
)
def test_words_are_cut_where_the_main_line_can_follow(main: str, parts: str, written: str) -> None:
    source = make(f"*CHI:\t{main}")
    document = chat.parse(source, "a.cha")
    utterance = document.utterances[0]
    tokens = regroup(utterance.tokens, find(" ".join(token.text for token in utterance.tokens), *parts.split()))
    result = chat_output.render(replace(document, utterances=(replace(utterance, tokens=analyse(tokens)),)))
    read_strictly(result)
    assert strip_tiers(result) == make(f"*CHI:\t{written}")
    again = chat.parse(result, "a.cha").utterances[0].tokens
    assert [token.text for token in again] == [token.text for token in tokens]


def regroup(tokens: Sequence[Token], found: Sequence[tuple[str, int, int]]) -> tuple[Token, ...]:
    """What becomes of tokens with a tokeniser's answer: text, start, end of each of its own."""
    merged = merge([t.text for t in tokens], [t.run for t in tokens], [RawToken(*one) for one in found])
    filled = fill(tokens, [Analysis(one.text, one.first, one.last, ()) for one in merged])
    return settle(tokens, filled)


def test_words_are_joined_where_nothing_stands_between_them() -> None:
    document = chat.parse(make("*CHI:\tice cream and ice [?] cream and ice\n\tcream ."), "a.cha")
    utterance = document.utterances[0]
    text = " ".join(token.text for token in utterance.tokens)
    tokens = regroup(utterance.tokens, find(text, "ice cream", "and", "ice cream", "and", "ice cream", "."))
    assert [(token.text, token.source) for token in tokens[:2]] == [("ice_cream", (0, 2)), ("and", (2, 3))]
    result = chat_output.render(replace(document, utterances=(replace(utterance, tokens=analyse(tokens)),)))
    assert "*CHI:\tice_cream and ice [?] cream and ice_cream .\n%mor:" in result
    read_strictly(result)


@pytest.mark.parametrize(
    ("main", "pieces", "written", "items"),
    [
        ("mm-hmm yes .", [("mm", 0, 1), ("-", 0, 1), ("hmm", 0, 1), ("yes", 1, 2), (".", 2, 3)], "mm-hmm yes .", 2),
        ("ice cream .", [("ice cream", 0, 2), (".", 2, 3)], "ice_cream .", 1),
        ("3 4 go .", [("3 4", 0, 2), ("go", 2, 3), (".", 3, 4)], "3_4 go .", 2),
        ("e-mail it .", [("e", 0, 2), ("-", 0, 2), ("mail it", 0, 2), (".", 2, 3)], "e-mail_it .", 1),
    ],
)
def test_pieces_that_are_no_words_of_a_main_line_become_parts_of_one(
    main: str, pieces: list[tuple[str, int, int]], written: str, items: int
) -> None:
    document = chat.parse(make(f"*CHI:\t{main}"), "a.cha")
    tokens = [
        Token(text, TokenKind.TERMINATOR if text == "." else TokenKind.WORD, source=(first, last))
        for text, first, last in pieces
    ]
    utterance = replace(document.utterances[0], tokens=analyse(tokens))
    result = chat_output.render(replace(document, utterances=(utterance,)))
    read_strictly(result)
    assert f"*CHI:\t{written}\n%mor" in result
    assert len(get_tier(result, "mor")[0].split()) == items + 1
    assert len(get_tier(result, "gra")[0].split()) == len(pieces)


@pytest.mark.parametrize("tier", ["%wor:\tgimme .", "%pho:\tgɪmi"])  # noqa: RUF001
def test_words_stay_where_another_tier_has_an_item_for_each(tier: str) -> None:
    tokens = chat.parse(make(f"*CHI:\tgimme .\n{tier}"), "a.cha").utterances[0].tokens
    assert [token.run for token in tokens] == [0, 0]
    assert [token.text for token in regroup(tokens, find("gimme .", "gim", "me", "."))] == ["gimme", "."]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab0&=+-~:()[]<>/,.?!*@s$_^ \n\t\x15“”„‡⌈⌉↫°Ἡ1", max_size=40))
def test_no_main_line_is_too_odd_to_be_read(text: str) -> None:
    main = f"*CHI:\t{text}"
    placed, _ = place_tokens(main, ("eng", "spa"))
    assert all(one.token.text and one.start < one.end <= len(main) for one in placed)
    assert all(first.start <= second.start for first, second in pairwise(placed))
    assert tuple(one.token for one in placed) == list_tokens(main, ("eng", "spa"))[0]


@settings(max_examples=100, deadline=None)
@given(LINES, st.data())
def test_any_cut_leaves_a_main_line_with_just_these_tokens(
    line: tuple[str, str, str, str], data: st.DataObject
) -> None:
    main = f"*CHI:\t{line[0]} {line[1]}{line[2]}"
    placed, _ = place_tokens(main, ("eng", "spa"))
    old = [one.token for one in placed]
    assert tuple(old) == list_tokens(main, ("eng", "spa"))[0]
    text = " ".join(token.text for token in old)
    edges = [0, *sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=6))), len(text)]
    spans = [(a, b) for a, b in pairwise(edges) if text[a:b].strip()]
    new = regroup(old, [(text[a:b].strip(), a + (text[a] == " "), b - (text[b - 1] == " ")) for a, b in spans])
    written = retokenize_main(main, placed, new) if new[0].source else main
    assert [token.text for token in list_tokens(written, ("eng", "spa"))[0]] == [token.text for token in new]
    if [token.text for token in new] == [token.text for token in old]:
        assert written == main


def test_tokens_that_leave_something_out_are_refused() -> None:
    placed, _ = place_tokens("*CHI:\tI gimme@c .", ())
    new = [replace(one.token, source=(place, place + 1)) for place, one in enumerate(placed)]
    with pytest.raises(ValueError, match="after 1 of 3"):
        retokenize_main("*CHI:\tI gimme@c .", placed, [new[0], new[2]])
    with pytest.raises(ValueError, match="may not become"):
        cut = [new[0], Token("gim", source=(1, 2)), Token("me", source=(1, 2)), new[2]]
        retokenize_main("*CHI:\tI gimme@c .", placed, cut)


# files that were no CHAT


def test_analysed_text_becomes_a_chat_file_with_an_item_for_each_word() -> None:
    texts = ["“", "Hi", ",", "there", "”", ",", "--", "25", "don't", "!"]
    kinds = {"Hi", "there", "25", "don't"}
    tokens = [Token(text, TokenKind.WORD if text in kinds else TokenKind.SEPARATOR) for text in texts]
    tokens[-1] = replace(tokens[-1], kind=TokenKind.TERMINATOR)
    line = "“Hi, there”, -- 25 don't!"
    utterance = Utterance(line, tuple(Word(word) for word in line.split()), tokens=analyse(tokens))
    spanish = Utterance("hola", (Word("hola"),), tokens=analyse([Token("hola")]), language="spa")
    silent = Utterance("...", (), tokens=analyse([Token("...", TokenKind.TERMINATOR)]))
    document = Document((utterance, spanish, silent), media="talk", languages=("eng",))
    result = formats.render(document, "chat")
    read_strictly(result)
    assert "@Media" not in result  # there is no recording
    assert "@Languages:\teng, spa\n" in result
    assert re.findall(r"^\*SPK:\t(.*)", result, re.MULTILINE) == [
        "Hi , there , twenty five don't !",
        "[- spa] hola .",
    ]
    relations = "1|0|ROOT 2|1|DEP 3|1|DEP 4|1|DEP 5|1|DEP 6|5|FLAT 7|1|DEP 8|1|DEP 9|1|DEP"
    assert get_tier(result, "gra")[0] == relations
    assert get_tier(result, "mor")[0].split()[4:6] == ["noun|twenty", "noun|five"]


def test_what_a_main_line_cannot_hold_leaves_the_tree_to_its_head() -> None:
    words = [("~", 3), ("a", 1), ("/", 0), ("b", 3), ("c", 1)]
    tokens = [
        Token(text, words=(SyntacticWord(text, text, "SYM" if head in (0, 3) else "NOUN", head=head, deprel="dep"),))
        for text, head in words
    ]
    result = formats.render(Document((Utterance("~ a / b c", (), tokens=tuple(tokens)),)), "chat")
    read_strictly(result)
    assert "*SPK:\ta b c .\n" in result
    assert get_tier(result, "gra") == ["1|0|ROOT 2|1|DEP 3|1|DEP 4|1|PUNCT"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8), st.data())
def test_any_analysed_text_becomes_a_chat_file_that_the_strict_reader_takes(
    texts: list[str], data: st.DataObject
) -> None:
    kinds = st.sampled_from([TokenKind.WORD, TokenKind.WORD, TokenKind.SEPARATOR])
    tokens = [Token(text, data.draw(kinds)) for text in texts]
    if data.draw(st.booleans()):
        tokens.append(Token("?", TokenKind.TERMINATOR))
    tokens.insert(0, Token("well"))
    utterance = Utterance(" ".join(texts), (), tokens=analyse(tokens))
    result = formats.render(Document((utterance,), languages=("eng",)), "chat")
    read = read_strictly(result).utterances()
    assert get_tier(result, "mor")
    assert all(token.gra for token in read[0].tokens or ())


def test_what_means_something_in_small_letters_gets_them() -> None:
    document = FORMATS["text"].parse("XXX said Www .\n", "a.txt")  # type: ignore[misc]
    written = FORMATS["chat"].render(replace(document, languages=("eng",), media="a"))  # type: ignore[misc]
    assert "*SPK:\txxx said www ." in written
    CHAT.from_strs([written], strict=True)


def test_what_the_parser_panics_at_is_refused_as_other_faults_are() -> None:
    lines = ["@UTF8", "@Begin", "@Languages:\teng", "@Participants:\tCHI Target_Child"]
    lines += ["@ID:\teng|x|CHI|||||Target_Child|||", "*CHI:\t<<<<<<<<<<a .", "@End", ""]
    with pytest.raises(InputError, match=r"a\.cha: is not valid CHAT: line 6: "):
        chat.parse("\n".join(lines), "a.cha")
