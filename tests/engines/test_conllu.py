"""CoNLL-U in and out; analyses as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rustling.conllu import CoNLLU
from rustling.conllu import Token as Row

from prefork.engines.base import InputError
from prefork.engines.text import formats
from prefork.engines.text.document import Document, SyntacticWord, Token, TokenKind, Utterance
from prefork.engines.text.formats import conllu

pytestmark = pytest.mark.dependencies

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TREEBANK = SHARED / "data" / "ud-english-ewt" / "en_ewt-ud-dev.conllu"


def lay(*rows: str) -> str:
    """A sentence whose columns are written with spaces."""
    return "\n".join(row if row.startswith("#") else row.replace(" ", "\t") for row in rows) + "\n\n"


DONT = lay(
    "# newdoc id = talk",
    "# sent_id = talk-1",
    "# text = (I don't.)",
    "# speaker = ANN",
    "# lang = de",
    "#note: kept as it is ",
    "1 ( ( PUNCT -LRB- _ 4 punct 4:punct SpaceAfter=No",
    "2 I I PRON PRP Case=Nom 4 nsubj 4:nsubj Entity=(p1)",
    "3-4 don't _ _ _ _ _ _ _ SpaceAfter=No",
    "3 do do AUX VBP _ 4 aux 4:aux A=1",
    "4 n't not PART RB _ 0 root 0:root B=2",
    "4.1 go go VERB _ _ _ _ 4:dep C=3",
    "5 . . PUNCT . _ 4 punct 4:punct SpaceAfter=No",
    "6 ) ) PUNCT -RRB- _ 4 punct 4:punct _",
)


def analyse(token: Token, first: int = 1, *forms: str) -> Token:
    """Any analysis at all: each word depends on the one before it."""
    words = [
        SyntacticWord(form, form.lower(), "X", head=first + i - 1, deprel="dep" if first + i > 1 else "root")
        for i, form in enumerate(forms or (token.text,))
    ]
    return replace(token, words=tuple(words))


def analyse_all(texts: Sequence[str], splits: dict[str, Sequence[str]]) -> tuple[Token, ...]:
    tokens: list[Token] = []
    number = 1
    for text in texts:
        forms = splits.get(text, (text,))
        tokens.append(analyse(Token(text), number, *forms))
        number += len(forms)
    return tuple(tokens)


def take_gold(document: Document) -> Document:
    """The analyses of the document's own source, as an engine would fill them in."""
    sentences = CoNLLU.from_strs([document.source], parallel=False).sentences()
    utterances = [
        replace(utterance, tokens=tuple(fill_gold(utterance.tokens, sentence.tokens())))
        for utterance, sentence in zip(document.utterances, sentences, strict=True)
    ]
    return replace(document, utterances=tuple(utterances))


def fill_gold(tokens: Sequence[Token], rows: Sequence[Row]) -> Iterator[Token]:
    ranges = dict(row.id.split("-") for row in rows if "-" in row.id)
    words = [
        SyntacticWord(row.form, row.lemma, row.upos, row.xpos, row.feats, int(row.head), row.deprel)
        for row in rows
        if row.id.isdecimal()
    ]
    number = 1
    for token in tokens:
        end = int(ranges.get(str(number), number))
        yield replace(token, words=tuple(words[number - 1 : end]))
        number = end + 1


def list_columns(text: str, count: int) -> list[list[str]]:
    """The first columns of all rows but those of empty nodes."""
    rows = [line.split("\t") for line in text.split("\n") if line and not line.startswith("#")]
    return [row[:count] for row in rows if "." not in row[0]]


def check_readable(text: str) -> None:
    """rustling reads it, and writes the same but for the empty line at the end."""
    assert CoNLLU.from_strs([text], parallel=False).to_strs()[0] + "\n" == text


def test_sentence_is_an_utterance_whose_tokens_are_as_written() -> None:
    [utterance] = conllu.parse(DONT, "a.conllu").utterances
    assert (utterance.text, utterance.speaker, utterance.language) == ("(I don't.)", "ANN", "deu")
    assert [token.text for token in utterance.tokens] == ["(", "I", "don't", ".", ")"]
    assert [word.text for word in utterance.words] == ["I", "don't"]
    assert not any(token.words for token in utterance.tokens)


@pytest.mark.parametrize(("old", "new"), [("PRON", "_"), ("4\tnsubj", "_\t_"), ("AUX", "_")])
def test_sentence_is_analysed_if_every_word_is(old: str, new: str) -> None:
    assert conllu.parse(DONT, "a.conllu").utterances[0].analysed
    assert not conllu.parse(DONT.replace(old, new, 1), "a.conllu").utterances[0].analysed


def test_any_token_may_be_cut_and_joined() -> None:
    assert {token.run for token in conllu.parse(DONT, "a.conllu").utterances[0].tokens} == {1}


def test_text_is_made_of_the_tokens_where_no_comment_has_it() -> None:
    source = re.sub("# text.*\n", "", DONT)
    assert conllu.parse(source, "a.conllu").utterances[0].text == "(I don't.)"


@pytest.mark.parametrize(
    ("forms", "kinds"),
    [
        ("Well , 50 % off . . .", "wswwwsst"),
        ("“ Yes ! ”", "swss"),
        ("no +...", "wt"),
        ("$ 5 :)", "wws"),
        ("क्या ।", "wt"),
        ("* * ?", "wwt"),
        (":) ...", "ww"),  # nothing else: it is what there is to analyse
    ],
)
def test_punctuation_separates_and_a_full_stop_ends(forms: str, kinds: str) -> None:
    rows = [f"{i} {form} _ _ _ _ _ _ _ _" for i, form in enumerate(forms.split(), 1)]
    [utterance] = conllu.parse(lay(*rows), "a.conllu").utterances
    assert "".join(token.kind.value[0] for token in utterance.tokens) == kinds


def test_new_analysis_replaces_the_old_and_nothing_else() -> None:
    document = conllu.parse(DONT, "a.conllu")
    tokens = analyse_all(["(", "I", "don't", ".", ")"], {"don't": ("do", "n't")})
    result = conllu.render(replace(document, utterances=(replace(document.utterances[0], tokens=tokens),)))
    assert result == DONT.split("1\t")[0] + lay(
        "1 ( ( X _ _ 0 root _ SpaceAfter=No",
        "2 I i X _ _ 1 dep _ Entity=(p1)",
        "3-4 don't _ _ _ _ _ _ _ SpaceAfter=No",
        "3 do do X _ _ 2 dep _ A=1",
        "4 n't n't X _ _ 3 dep _ B=2",
        "5 . . X _ _ 4 dep _ SpaceAfter=No",
        "6 ) ) X _ _ 5 dep _ _",
    )


def test_words_that_are_divided_otherwise_lose_their_own_misc() -> None:
    document = conllu.parse(DONT, "a.conllu")
    tokens = analyse_all(["(", "I", "don't", ".", ")"], {"I": ("I", "I")})
    rows = list_columns(conllu.render(replace(document, utterances=(Utterance("", (), tokens=tokens),))), 10)
    assert [(row[0], row[1], row[9]) for row in rows[1:5]] == [
        ("2-3", "I", "Entity=(p1)"),
        ("2", "I", "_"),
        ("3", "I", "_"),
        ("4", "don't", "SpaceAfter=No"),
    ]


def test_tokens_that_are_cut_anew_keep_the_spaces_of_the_text() -> None:
    document = conllu.parse(DONT, "a.conllu")
    tokens = analyse_all(["(", "I", "do", "n't.", ")"], {})
    rows = list_columns(conllu.render(replace(document, utterances=(Utterance("", (), tokens=tokens),))), 10)
    assert [row[9] for row in rows] == ["SpaceAfter=No", "Entity=(p1)", "SpaceAfter=No", "SpaceAfter=No", "_"]


def test_space_that_only_the_last_word_of_a_token_denies_is_still_denied() -> None:
    source = DONT.replace("_\tSpaceAfter=No\n3\t", "_\t_\n3\t").replace("B=2", "B=2|SpaceAfter=No")
    document = conllu.parse(re.sub("# text.*\n", "", source), "a.conllu")
    assert document.utterances[0].text == "(I don't.)"
    tokens = analyse_all(["(", "I", "don't", ".", ")"], {})
    rows = list_columns(conllu.render(replace(document, utterances=(Utterance("", (), tokens=tokens),))), 10)
    assert rows[2][9] == "SpaceAfter=No"


def test_sentence_without_a_new_analysis_stays_as_it_was() -> None:
    assert conllu.render(conllu.parse(DONT * 2, "a.conllu")) == DONT * 2


@pytest.mark.parametrize(
    "source",
    [
        "\ufeff" + DONT,
        DONT.replace("\n", "\r\n"),
        DONT.replace("\n", "\r"),
        DONT.rstrip("\n"),
        "\n \n" + DONT.rstrip("\n") + "\n \n\n",
    ],
)
def test_harmless_slips_are_mended(source: str) -> None:
    assert conllu.render(conllu.parse(source, "a.conllu")) == DONT


ROW = "1 a a X _ _ 0 root _ _"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("Well, I am text.\n", "line 1: 1 column separated by tabs instead of 10; save plain text as .txt"),
        (ROW + "\n", "line 1: spaces between the columns; use tabs"),
        (lay(ROW) + lay(ROW[:-2]), "line 3: 9 columns separated by tabs instead of 10"),
        (lay(ROW + " _"), "line 1: 11 columns"),
        (lay("# x", ROW[:-1]), "line 2: an empty column; write _ there"),
        (lay("1  a X _ _ 0 root _ _"), "line 1: an empty column"),
        (lay("# x", ROW, "2 b b X _ _ 3 dep _ _"), "line 3: HEAD 3 is not a word of a sentence of 2"),
        (lay("1 a a X _ _ x dep _ _"), "line 1: HEAD x is not a word"),
        (lay("2 a a X _ _ 0 root _ _"), "line 1: ID 2 is out of place"),
        (lay(ROW, ROW), "line 2: ID 1 is out of place"),
        (lay("x a a X _ _ 0 root _ _"), "line 1: 'x' is not the ID"),
        (lay("1-2 ab _ _ _ _ _ _ _ _", ROW), "line 1: ID 1-2 is out of place"),
        (lay("1.1 ab _ _ _ _ _ _ _ _", ROW), "line 1: ID 1.1 is out of place"),
        (lay("0.1 ab _ _ _ _ _ _ _ _"), "line 1: a sentence without words"),
        (lay(ROW, "# x", "2 b b X _ _ 1 dep _ _"), "line 2: a comment among a sentence's words; move it before them"),
        (lay(ROW) + lay("# x") + lay(ROW), "line 3: comments without a sentence; remove them"),
        (lay("1-3 ab _ _ _ _ _ _ _ _", ROW, "2-3 c _ _ _ _ _ _ _ _", "2 b _ _ _ _ _ _ _ _", "3 b _ _ _ _ _ _ _ _"),
         "line 3: ID 2-3 is out of place"),
    ],
)  # fmt: skip
def test_what_is_not_conllu_is_refused_with_line_and_remedy(tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / "a.conllu").write_text(source, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(f"a.conllu: is not valid CoNLL-U: {reason}")):
        formats.read(tmp_path / "a.conllu")


@pytest.mark.parametrize("source", ["", "\n\n", lay("1 ... ... PUNCT _ _ 0 root _ _")])
def test_file_without_words_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "a.conllu").write_text(source, encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.conllu: has no words"):
        formats.read(tmp_path / "a.conllu")


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(DONT)), st.sampled_from("\t\n\r #-.12_\x0b\x85\u2028\ufeff\xa0")), max_size=3)
)
def test_damaged_file_is_refused_or_comes_out_as_it_was_understood(edits: list[tuple[int, str]]) -> None:
    source = DONT
    for place, character in edits:
        source = source[:place] + character + source[place:]
    try:
        document = conllu.parse(source, "a.conllu")
    except InputError as error:
        assert re.match(r"a\.conllu: is not valid CoNLL-U: line \d+: ", str(error))
        return
    assert conllu.parse(conllu.render(document), "b.conllu").utterances == document.utterances


def make_talk() -> Document:
    """As from CHAT, whose lines are more than their tokens; from a plain text; and what CoNLL-U cannot hold."""
    spoken = (
        replace(analyse(Token("I"), 1), language="spa"),
        analyse(Token("don't"), 2, "do", "n't"),
        analyse(Token(".", TokenKind.TERMINATOR), 4),
    )
    plain = analyse_all(["«", "Hé", "!", "»"], {})
    return Document(
        (
            Utterance("xxx .", (), "CHI", tokens=(Token(".", TokenKind.TERMINATOR),)),
            Utterance("<I> [/] I don't .", (), "CHI", 1.5, 2.25, tokens=spoken),
            Utterance("«\u00a0He\u0301!  »", (), tokens=plain, language="deu"),
        ),
        media="a talk/1",
        languages=("eng",),
    )


def test_analysed_utterances_are_sentences_with_all_that_is_known() -> None:
    result = conllu.render(make_talk())
    assert result == lay(
        "# sent_id = a_talk_1-2",
        "# text = I don't .",
        "# speaker = CHI",
        "# start = 1.500",
        "# end = 2.250",
        "1 I i X _ _ 0 root _ Lang=es",
        "2-3 don't _ _ _ _ _ _ _ _",
        "2 do do X _ _ 1 dep _ _",
        "3 n't n't X _ _ 2 dep _ _",
        "4 . . X _ _ 3 dep _ _",
    ) + lay(
        "# sent_id = a_talk_1-3",
        "# text = « Hé! »",
        "# lang = de",
        "1 « « X _ _ 0 root _ _",
        "2 Hé hé X _ _ 1 dep _ SpaceAfter=No",
        "3 ! ! X _ _ 2 dep _ _",
        "4 » » X _ _ 3 dep _ _",
    )
    check_readable(result)
    again = conllu.parse(result, "a.conllu").utterances
    assert [(u.speaker, u.language, u.text) for u in again] == [("CHI", "", "I don't ."), (None, "deu", "« Hé! »")]


def test_nothing_that_a_word_is_made_of_breaks_a_row() -> None:
    word = SyntacticWord("a\tb\n", "", "X", feats="A=1\r\n")
    result = conllu.render(Document((Utterance("a\tb", (), tokens=(Token("a\tb", words=(word,)),)),)))
    assert list_columns(result, 10) == [["1", "a b", "_", "X", "_", "A=1", "0", "root", "_", "_"]]
    check_readable(result)


def test_stanza_reads_the_output() -> None:
    reader = pytest.importorskip("stanza.utils.conll", reason="needs stanza").CoNLL
    sentences = reader.conll2doc(input_str=conllu.render(make_talk())).sentences
    assert [sentence.text for sentence in sentences] == ["I don't .", "« Hé! »"]
    assert [len(token.words) for token in sentences[0].tokens] == [1, 2, 1]


@pytest.fixture(scope="module")
def treebank() -> Document:
    if not TREEBANK.is_file():
        pytest.skip(f"needs {TREEBANK}")
    return formats.read(TREEBANK)


def test_treebank_comes_out_as_it_went_in(treebank: Document) -> None:
    """But for the enhanced graph: DEPS and empty nodes."""
    result = conllu.render(take_gold(treebank))
    assert list_columns(result, 10) == [[*gold[:8], "_", gold[9]] for gold in list_columns(treebank.source, 10)]
    comments = [line for line in treebank.source.split("\n") if line.startswith("#")]
    assert [line for line in result.split("\n") if line.startswith("#")] == comments
    check_readable(result)


def test_treebank_as_a_text_keeps_its_analyses_and_its_spaces(treebank: Document) -> None:
    part = conllu.parse("\n\n".join(treebank.source.split("\n\n")[:400]), "a.conllu")
    result = conllu.render(replace(take_gold(part), format="text"))
    assert list_columns(result, 8) == list_columns(part.source, 8)
    check_readable(result)
    again = conllu.parse(result, "a.conllu")
    assert [u.text for u in again.utterances] == [u.text for u in part.utterances]
    bare = re.sub(r"(?m)^# text = .*\n", "", result)
    assert [u.text for u in conllu.parse(bare, "a.conllu").utterances] == [u.text for u in again.utterances]


def test_conllu_is_no_transcript_of_a_recording() -> None:
    assert ".conllu" in formats.READABLE
    assert list(formats.TRANSCRIPTS) == [".cha", ".txt", ".lab"]


def test_json_has_the_analyses_of_what_was_analysed() -> None:
    unanalysed, spoken, plain = json.loads(formats.render(make_talk(), "json"))["utterances"]
    assert "tokens" not in unanalysed
    assert "language" not in spoken
    assert plain["language"] == "deu"
    first, several, stop = spoken["tokens"]
    assert (first["language"], several["language"], first["marker"]) == ("spa", None, None)
    assert [token["kind"] for token in spoken["tokens"]] == ["word", "word", "terminator"]
    assert stop["text"] == "."
    assert several["words"][1] == {
        "form": "n't", "lemma": "n't", "upos": "X", "xpos": "", "feats": "", "head": 2, "deprel": "dep"
    }  # fmt: skip
