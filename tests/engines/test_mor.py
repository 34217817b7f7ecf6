"""%mor and %gra: what TalkBank's own programs write, what its grammar allows, and that nothing of UD is lost."""

# ruff: noqa: RUF001  the characters of many scripts are what is tested

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rustling.chat import CHAT

from prefork.engines.text import mor
from prefork.engines.text.document import SyntacticWord, Token, TokenKind
from prefork.engines.text.mor.lemmas import clean_lemma

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TREEBANK = SHARED / "data/ud-english-ewt/en_ewt-ud-test.conllu"
PERIOD = Token(".", TokenKind.TERMINATOR)
COMMA = Token(",", TokenKind.SEPARATOR, words=(SyntacticWord(",", ",", "PUNCT", "", "", 1, "punct"),))

# What a tier may hold, after chatter's grammar (https://github.com/TalkBank/chatter, grammar/grammar.js).
LEMMA = r"[^.?!|+~$#@%=&\[\]<>()\-\s“”][^.?|+~\-\s]*"
MOR_WORD = re.compile(rf"[^.?!|+~$#@%=&\[\]<>()\-,\s“”]+\|{LEMMA}(?:-[^.?|+~\-\s]+)*")


def read_token(source: str) -> Token:
    """`text: form lemma UPOS feats head deprel; ...`; without the text where it is the one form."""
    text, colon, analysis = source.rpartition(": ")
    words = []
    for row in analysis.split(";"):
        form, lemma, upos, feats, head, deprel = row.split()
        words.append(SyntacticWord(form, lemma, upos, "", "" if feats == "_" else feats, int(head), deprel))
    return Token(text if colon else words[0].form, words=tuple(words))


def read_sentence(*sources: str) -> list[Token]:
    return [*(read_token(source) for source in sources), PERIOD]


FINITE = "Mood=Ind|Number=Sing|Person={}|Tense={}|VerbForm=Fin"
I_AS = "{} I PRON Case=Nom|Number=Sing|Person=1|PronType=Prs {} nsubj"
THE = "the the DET Definite=Def|PronType=Art {} det"
GOING = "going go VERB Tense=Pres|VerbForm=Part 0 root"

EXAMPLES = {
    "I'm going .": (
        "eng",
        read_sentence(f"I'm: {I_AS.format('I', 3)};'m be AUX {FINITE.format(1, 'Pres')} 3 aux", GOING),
        "pron|I-Prs-Nom-S1~aux|be-Fin-Ind-Pres-S1 verb|go-Part-Pres-S .",
        "1|3|NSUBJ 2|3|AUX 3|0|ROOT 4|3|PUNCT",
    ),
    "I don't know .": (
        "eng",
        read_sentence(
            I_AS.format("I", 4),
            f"don't: do do AUX {FINITE.format(1, 'Pres')} 4 aux;n't not PART Polarity=Neg 4 advmod",
            "know know VERB VerbForm=Inf 0 root",
        ),
        "pron|I-Prs-Nom-S1 aux|do-Fin-Ind-Pres-S1~part|not verb|know-Inf-S .",
        "1|4|NSUBJ 2|4|AUX 3|4|ADVMOD 4|0|ROOT 5|4|PUNCT",
    ),
    "gonna go .": (
        "eng",
        read_sentence(
            "gonna: gon go VERB Tense=Pres|VerbForm=Part 0 root;na to PART _ 3 mark", "go go VERB VerbForm=Inf 1 xcomp"
        ),
        "verb|go-Part-Pres-S~part|to verb|go-Inf-S .",
        "1|0|ROOT 2|3|MARK 3|1|XCOMP 4|1|PUNCT",
    ),
    "going to go .": (
        "eng",
        read_sentence(GOING, "to to PART _ 3 mark", "go go VERB VerbForm=Inf 1 xcomp"),
        "verb|go-Part-Pres-S part|to verb|go-Inf-S .",
        "1|0|ROOT 2|3|MARK 3|1|XCOMP 4|1|PUNCT",
    ),
    "the cat's toy .": (
        "eng",
        read_sentence(
            THE.format(2),
            "cat's: cat cat NOUN Number=Sing 4 nmod:poss;'s 's PART _ 2 case",
            "toy toy NOUN Number=Sing 0 root",
        ),
        "det|the-Def-Art noun|cat~part|s noun|toy .",
        "1|2|DET 2|4|NMOD-POSS 3|2|CASE 4|0|ROOT 5|4|PUNCT",
    ),
    "icecream .": (
        "eng",
        read_sentence("ice+cream ice+cream NOUN Number=Sing 0 root"),
        "noun|icecream .",
        "1|0|ROOT 2|1|PUNCT",
    ),
    "ice cream .": (
        "eng",
        read_sentence("ice ice NOUN Number=Sing 2 compound", "cream cream NOUN Number=Sing 0 root"),
        "noun|ice noun|cream .",
        "1|2|COMPOUND 2|0|ROOT 3|2|PUNCT",
    ),
    "vamos del parque .": (
        "spa",
        read_sentence(
            "vamos ir VERB Mood=Ind|Number=Plur|Person=1|Tense=Pres|VerbForm=Fin 0 root",
            "del: de de ADP _ 4 case;el el DET Definite=Def|Gender=Masc|Number=Sing|PronType=Art 4 det",
            "parque parque NOUN Gender=Masc|Number=Sing 1 obl",
        ),
        "verb|ir-Fin-Ind-Pres-P1 adp|de~det|el-Masc-Def-Art-Sing noun|parque-Masc .",
        "1|0|ROOT 2|4|CASE 3|4|DET 4|1|OBL 5|1|PUNCT",
    ),
    "הלך לבית .": (
        "heb",
        read_sentence(
            "הלך הלך VERB Gender=Masc|HebBinyan=PAAL|Number=Sing|Person=3|Tense=Past 0 root",
            "לבית: ל ל ADP _ 4 case;_ה_ ה DET Definite=Def|PronType=Art 4 det;בית בית NOUN Gender=Masc 1 obl",
        ),
        "verb|הלך-Inf-Past-paal-S3 adp|ל~det|ה-Def-Art~noun|בית-Masc .",
        "1|0|ROOT 2|4|CASE 3|4|DET 4|1|OBL 5|1|PUNCT",
    ),
    # The following are outputs of batchalign itself (batchalign/tests/golden of TalkBank/batchalign3).
    "she went to the store .": (
        "eng",
        read_sentence(
            "she she PRON Case=Nom|Gender=Fem|Number=Sing|Person=3|PronType=Prs 2 nsubj",
            f"went go VERB {FINITE.format(3, 'Past')} 0 root",
            "to to ADP _ 5 case",
            THE.format(5),
            "store store NOUN Number=Sing 2 obl",
        ),
        "pron|she-Prs-Nom-S3 verb|go-Fin-Ind-Past-S3-irr adp|to det|the-Def-Art noun|store .",
        "1|2|NSUBJ 2|0|ROOT 3|5|CASE 4|5|DET 5|2|OBL 6|2|PUNCT",
    ),
    "I like cats .": (
        "eng",
        read_sentence(
            I_AS.format("I", 2),
            f"like like VERB {FINITE.format(1, 'Pres')} 0 root",
            "cats cat NOUN Number=Plur 2 obj",
        ),
        "pron|I-Prs-Nom-S1 verb|like-Fin-Ind-Pres-S1 noun|cat-Plur-Acc .",
        "1|2|NSUBJ 2|0|ROOT 3|2|OBJ 4|2|PUNCT",
    ),
    "el gato es grande .": (
        "spa",
        read_sentence(
            "el el DET Definite=Def|Gender=Masc|Number=Sing|PronType=Art 2 det",
            "gato gato NOUN Gender=Masc|Number=Sing 4 nsubj",
            f"es ser AUX {FINITE.format(3, 'Pres')} 4 cop",
            "grande grande ADJ Number=Sing 0 root",
        ),
        "det|el-Masc-Def-Art-Sing noun|gato-Masc aux|ser-Fin-Ind-Pres-S3 adj|grande-S1 .",
        "1|2|DET 2|4|NSUBJ 3|4|COP 4|0|ROOT 5|4|PUNCT",
    ),
}


def write_chat(line: str, tokens: list[Token], language: str) -> str:
    head = f"@UTF8\n@Begin\n@Languages:\t{language}\n@Participants:\tCHI Target_Child\n"
    head += f"@ID:\t{language}|corpus|CHI|||||Target_Child|||\n"
    mor_tier, gra_tier = mor.render_mor(tokens, language), mor.render_gra(tokens)
    return f"{head}*CHI:\t{line}\n%mor:\t{mor_tier}\n%gra:\t{gra_tier}\n@End\n"


def read_chat(source: str) -> list[tuple[int, int, str]]:
    """%gra as rustling's strict reader understands it; it raises ValueError if %mor does not fit the line."""
    (utterance,) = CHAT.from_strs([source], strict=True, parallel=False).utterances()
    relations: list[Any] = [token.gra for token in utterance.tokens or ()]
    return [(gra.dep, gra.head, gra.rel) for gra in relations]


def assert_valid(tokens: list[Token], language: str) -> None:
    """By chatter's grammar, and by its rule that %gra has an entry for each word of %mor."""
    words = [word for item in mor.render_mor(tokens, language).split() for word in item.split("~")]
    assert len(words) == len(mor.render_gra(tokens).split())
    for word in words[:-1]:
        assert MOR_WORD.fullmatch(word), word


@pytest.mark.parametrize("line", EXAMPLES)
def test_sentences_are_written_as_talkbank_writes_them_and_read_strictly(line: str) -> None:
    language, tokens, mor_tier, gra_tier = EXAMPLES[line]
    assert mor.render_mor(tokens, language) == mor_tier
    assert mor.render_gra(tokens) == gra_tier
    assert_valid(tokens, language)
    entries = [tuple(entry.split("|")) for entry in gra_tier.split()]
    assert read_chat(write_chat(line, tokens, language)) == [(int(n), int(h), r) for n, h, r in entries]


WORDS = [  # language, a word, its %mor
    ("eng", "that that PRON PronType=Rel 0 root", "pron|that-Rel"),
    ("spa", "who who PRON PronType=Rel 0 root", "pron|who-Rel-S1"),
    ("eng", "bigger big ADJ Degree=Cmp 0 root", "adj|big-Cmp-S1"),
    ("eng", "London London PROPN Number=Sing 0 root", "propn|London"),
    ("eng", "two two NUM NumType=Card 0 root", "num|two"),
    ("eng", "wow wow INTJ _ 0 root", "intj|wow"),
    ("eng", "% % SYM _ 0 root", "sym|_"),
    ("eng", "itself itself PRON Case=Acc|Person=3|PronType=Prs|Reflex=Yes 0 root", "pron|itself-Prs-Acc-reflx-S3"),
    ("eng", f"bang bang VERB {FINITE.format(3, 'Pres')} 0 root", "verb|bang-Fin-Ind-Pres-S"),
    ("eng", f"bangs bang VERB {FINITE.format(3, 'Pres')} 0 root", "verb|bang-Fin-Ind-Pres-S3"),
    ("eng", "undone undo VERB Tense=Past|VerbForm=Part 0 root", "verb|undo-Part-Past-S-irr"),
    ("eng", "goed go VERB Tense=Past|VerbForm=Fin 0 root", "verb|go-Fin-Past-S"),
    ("spa", "went go VERB Tense=Past|VerbForm=Fin 0 root", "verb|go-Fin-Past-S"),
    ("eng", "reading reading NOUN Number=Sing 0 root", "noun|reading-Ger"),
    ("eng", "thing thing NOUN Number=Sing 0 root", "noun|thing"),
    ("fra", "chevaux cheval NOUN Gender=Masc|Number=Plur 0 root", "noun|cheval-Masc-Plur-Apm"),
    ("fra", "maisons maison NOUN Gender=Fem|Number=Plur 0 root", "noun|maison-Fem-Plur"),
    ("fra", "je je PRON Number=Sing|Person=1|PronType=Prs 0 root", "pron|je-Prs-Nom-S1"),
    ("fra", "nous nous PRON Number=Plur|Person=1|PronType=Prs 0 root", "pron|nous-Prs-P1"),
    ("fra", "le le DET Definite=Def|PronType=Art 0 root", "det|le-Masc-Def-Art"),
    ("fra", "les le DET Definite=Def|Number=Plur|PronType=Art 0 root", "det|le-Def-Art-Plur"),
    ("deu", "Hund Hund NOUN Case=Nom|Gender=Masc|Number=Sing 0 root", "noun|Hund-Masc-Nom"),
    ("dan", "hvad hvad PRON Number=Sing|PronType=Int,Rel 0 root", "pron|hvad-Int,Rel-S1"),
    ("ara", "كتابان كِتَاب NOUN Case=Nom|Gender=Masc|Number=Dual 0 root", "noun|كِتَاب-Masc-Dual-Nom"),
    ("ara", "هما هُمَا PRON Number=Dual|Person=3|PronType=Prs 0 root", "pron|هُمَا-Prs-D3"),
    ("est", "saab saama VERB Number=Sing|Person=0|VerbForm=Fin 0 root", "verb|saama-Fin-S4"),
    ("hun", "a a DET Number[psor]=Plur|Person[psor]=1 0 root", "det|a-Def-P1"),
]


@pytest.mark.parametrize(("language", "word", "expected"), WORDS)
def test_a_word_has_its_features_in_order(language: str, word: str, expected: str) -> None:
    tokens = read_sentence(word)
    assert mor.render_mor(tokens, language) == f"{expected} ."
    assert_valid(tokens, language)


SPECIAL_FORMS = {
    "c": "c|gumma",
    "k": "k|gumma",
    "wp": "wp|gumma",
    "si": "si|gumma",
    "s": "L2|xxx",
    "s:spa": "L2|xxx",
    "s:eng+spa": "L2|xxx",
    "z:rtfd": "noun|xbxxx-Plur",
    "": "noun|xbxxx-Plur",
}


@pytest.mark.parametrize(("marker", "expected"), SPECIAL_FORMS.items())
def test_special_forms_have_their_marker_for_a_part_of_speech(marker: str, expected: str) -> None:
    (token, period) = read_sentence("gumma: xbxxx xbxxx NOUN Number=Plur 0 root")
    tokens = [replace(token, marker=marker), period]
    assert mor.render_mor(tokens, "eng") == f"{expected} ."
    assert_valid(tokens, "eng")
    line = f"gumma{'@' * bool(marker)}{marker} ."
    assert read_chat(write_chat(line, tokens, "eng")) == [(1, 0, "ROOT"), (2, 1, "PUNCT")]


def test_every_word_of_another_language_is_covered() -> None:
    (token, period) = read_sentence("del: de de ADP _ 0 root;el el DET _ 1 fixed")
    tokens = [replace(token, marker="s:spa"), period]
    assert mor.render_mor(tokens, "eng") == "L2|xxx~L2|xxx ."
    assert_valid(tokens, "eng")


def test_tag_markers_have_items_of_their_own() -> None:
    (yes, period) = read_sentence("yes yes INTJ _ 0 root")
    tokens = [yes, COMMA, replace(COMMA, text="„"), replace(COMMA, text="‡"), replace(COMMA, text=";"), period]
    tokens[4] = replace(tokens[4], words=(SyntacticWord(";", ";", "PUNCT", "", "", 1, "punct"),))
    assert mor.render_mor(tokens, "eng") == "intj|yes cm|cm end|end beg|beg punct|; ."
    assert [mor.find_upos(word) for (word,) in mor.read_mor("intj|yes cm|cm end|end beg|beg .")] == (
        ["INTJ", "PUNCT", "PUNCT", "PUNCT", "PUNCT"]
    )
    assert_valid(tokens, "eng")


def test_terminators_stand_for_themselves_and_keep_their_place_in_the_tree() -> None:
    (go, _) = read_sentence("go go VERB VerbForm=Inf 0 root")
    trailing = Token("+/.", TokenKind.TERMINATOR)
    analysed = replace(trailing, words=(SyntacticWord(".", ".", "PUNCT", "", "", 2, "punct"),))
    here = read_token("here here ADV _ 1 advmod")
    assert mor.render_mor([go, trailing], "eng") == "verb|go-Inf-S +/."
    assert mor.render_gra([go, here, trailing]) == "1|0|ROOT 2|1|ADVMOD 3|1|PUNCT"
    assert mor.render_gra([go, here, analysed]) == "1|0|ROOT 2|1|ADVMOD 3|2|PUNCT"
    assert mor.render_gra([trailing]) == "1|0|ROOT"


LEMMAS = [
    ("mother-in-law", "mother–in–law"),
    ("o'clock", "oclock"),
    ("aujourd’hui", "aujourdhui"),
    ("New_York", "New_York"),
    ("ice+cream", "icecream"),
    ("jää#kaappi", "jää_kaappi"),
    ("maja=uks", "maja=uks"),
    ("partxi!se", "partxi!se"),
    ("AT&T", "AT_T"),
    ("Mr.", "Mr"),
    ("3.5", "3_5"),
    ("10,000", "10000"),
    ("être|suivre", "être"),
    ("ふ す", "ふす"),
    ("wug@c", "wug"),
    ("\u200fשָׁלוֹם\u200e", "שָׁלוֹם"),
    ("می‌خواهم", "می‌خواهم"),
    ("\u0301a", "a"),
    ("", "said"),
    ("_", "said"),
    (".", "said"),
    ("<unk>", "said"),
]


@pytest.mark.parametrize(("lemma", "expected"), LEMMAS)
def test_lemmas_are_made_holdable(lemma: str, expected: str) -> None:
    assert clean_lemma(lemma, "said") == expected


MARKS = [("...", "___"), ("-", "–"), ("'", "'"), ("|", "_"), (" ", "x"), ("", "x")]


@pytest.mark.parametrize(("mark", "expected"), MARKS)
def test_marks_without_a_letter_are_made_holdable(mark: str, expected: str) -> None:
    assert clean_lemma(mark, mark) == expected


@settings(max_examples=300, deadline=None)
@given(*[st.text(st.sampled_from("ab1\u0301 |-~&#+$^\"'“,.?!@%=_()[]<>\u200f\u200d\x15") | st.characters())] * 2)
def test_no_lemma_breaks_the_tier(lemma: str, form: str) -> None:
    cleaned = clean_lemma(lemma, form)
    assert re.fullmatch(LEMMA, cleaned), cleaned


BROKEN = [
    (["a a X _ 2 dep", "b b X _ 1 dep"], "0 roots"),
    (["a a X _ 0 root", "b b X _ 0 root"], "2 roots"),
    (["a a X _ 0 root", "b b X _ 3 dep", "c c X _ 2 dep"], "depends on itself"),
    (["a a X _ 0 root", "b b X _ 3 dep"], "depends on word 3 of 2"),
    (["a a X _ 0 dep"], "is dep with head 0"),
    (["a a X _ 0 root", "b b X _ 1 root"], "is root with head 1"),
    (["a a X _ 0 root", "b b X _ 1 <PAD>"], "'<PAD>' is not a relation"),
    (["a a X _ 0 root", "b b X _ 1 iob"], "'iob' is not a relation"),
]


@pytest.mark.parametrize(("words", "reason"), BROKEN)
def test_what_is_no_tree_is_refused(words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        mor.render_gra(read_sentence(*words))


def test_what_no_item_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="'go' was not analysed"):
        mor.render_mor([Token("go"), PERIOD], "eng")
    with pytest.raises(ValueError, match="'' is not a part of speech"):
        mor.render_mor([Token("go", words=(SyntacticWord("go", "go", ""),))], "eng")
    with pytest.raises(ValueError, match="',' was analysed as 2 words"):
        mor.render_gra([replace(COMMA, words=COMMA.words * 2)])


def test_gra_of_older_corpora_is_read() -> None:
    assert mor.read_gra("1|1|ROOT 2|1|ACL-RELCL") == (mor.Relation(1, 0, "root"), mor.Relation(2, 1, "acl:relcl"))
    with pytest.raises(ValueError, match="'1\\|2' is not an entry"):
        mor.read_gra("1|2")


def test_every_relation_can_be_read_back() -> None:
    for relation in mor.RELATIONS - {"root"}:
        tokens = read_sentence("a a X _ 0 root", f"b b X _ 1 {relation}", f"c c X _ 1 {relation}:sub")
        assert [read.deprel for read in mor.read_gra(mor.render_gra(tokens))[1:3]] == [relation, f"{relation}:sub"]


def read_treebank(path: Path) -> Iterator[list[Token]]:
    """Its sentences, each as an utterance; a final `.`, `?` or `!` is the terminator."""
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        rows = [line.split("\t") for line in block.split("\n") if not line.startswith("#")]
        ranges = {int(row[0].split("-")[0]): row for row in rows if "-" in row[0]}
        words = [row for row in rows if row[0].isdigit()]
        tokens: list[Token] = []
        while words:
            first = int(words[0][0])
            size = 1 + (int(ranges[first][0].split("-")[1]) - first if first in ranges else 0)
            text = ranges[first][1] if first in ranges else words[0][1]
            fields = ((r[1], r[2], r[3], r[4], r[5].strip("_"), int(r[6]), r[7]) for r in words[:size])
            tokens.append(Token(text, words=tuple(SyntacticWord(*field) for field in fields)))
            words = words[size:]
        if tokens[-1].text in (".", "?", "!") and len(tokens) > 1:
            tokens[-1] = replace(tokens[-1], kind=TokenKind.TERMINATOR)
        else:
            tokens.append(PERIOD)
        yield tokens


def write_word(token: Token) -> str:
    """The token as a main line has it."""
    if token.kind is TokenKind.TERMINATOR or token.text == ",":
        return token.text
    return "".join(character for character in token.text if character.isalpha()) or "w"


@pytest.mark.skipif(not TREEBANK.exists(), reason=f"needs {TREEBANK.name}, of the English Web Treebank, in ../shared")
def test_a_treebank_goes_through_unchanged() -> None:
    sample = list(read_treebank(TREEBANK))[::5]
    assert len(sample) > 400
    for tokens in sample:
        assert_valid(tokens, "eng")
        source = write_chat(" ".join(write_word(token) for token in tokens), tokens, "eng")
        gra_tier = mor.render_gra(tokens)
        assert [f"{number}|{head}|{name}" for number, head, name in read_chat(source)] == gra_tier.split()
        words = [word for token in tokens for word in token.words]
        read = [word for item in mor.read_mor(mor.render_mor(tokens, "eng")) for word in item]
        relations = mor.read_gra(gra_tier)
        assert [mor.find_upos(word) for word in read][: len(words)] == [word.upos for word in words]
        assert [(relation.head, relation.deprel) for relation in relations][: len(words)] == (
            [(word.head, word.deprel) for word in words]
        )
