"""English sentences of a treebank as a CHAT transcript has them: small letters, few marks, contractions, interjections.

For tests/data/train_stanza_english.py: newspapers and reviews alone do not teach a tagger how people talk.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path


def listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


TERMINATORS = frozenset(".?!")
CLITICS = {"s": "'s", "r": "'re", "re": "'re"}  # your, its, were: elsewhere words of their own
BEFORE_NOT = listed("do does did is are was were have has had could would should must need ought")
SUBJECTS = listed("i you he she it we they that this there here what who where how")
CONTRACTED = {
    "is": "'s",
    "has": "'s",
    "are": "'re",
    "am": "'m",
    "have": "'ve",
    "will": "'ll",
    "would": "'d",
    "had": "'d",
}
SPOKEN = {("going", "to"): ("gon", "na"), ("want", "to"): ("wan", "na"), ("got", "to"): ("got", "ta")}
INTERJECTIONS = listed(
    "oh yeah no yes well okay hey mhm um uh huh hmm ah wow uhhuh uhoh oops alright yep nope hi bye hello ooh aw ouch "
    "please right sure thanks yay mm"
)
POLARITY = {"yes": "Polarity=Pos", "no": "Polarity=Neg"}
NAMES = listed("Mommy Daddy Mom Dad Mama Papa Grandma Grandpa Mark Adam Eve Sarah Ross Naomi Peter Laura Tom Anna")
CONTRACTIONS = {
    "'s": "he she it that this there here what who where when how why one everybody everyone somebody someone nobody "
    "let",
    "'re": "you we they what who where there how these those",
    "'ve": "i you we they should could would might must who there",
    "'ll": "i you he she it we they that this there who what how somebody",
    "'d": "i you he she it we they that there who how what where why",
    "'m": "i",
    "n't": "do does did is are was were have has had ca could wo would sha should might must need ai dare ought",
}
SPLITS = (
    "can+not gim+me gon+na got+ta lem+me wan+na out+ta y'+all y'+know d'+you d'+ya 't+is 't+was du+n+no more+'n "
    "kids+' boys+' girls+' dogs+' parents+' babies+' friends+' teachers+' could+n't+'ve should+n't+'ve would+n't+'ve "
    "I+'d+'ve you+'d+'ve he+'d+'ve they+'d+'ve mommy+'s daddy+'s baby+'s doggie+'s kitty+'s teddy+'s"
)
UNSPLIT = (
    "o'clock O'Clock ma'am Ma'am 'cause 'em 'til 'bout 'nother 'kay 'round 'specially li'l ol' an' o' c'mon s'more "
    "s'mores s'posed rock'n'roll goin' doin' comin' lookin' nothin' somethin' sittin' runnin' eatin' playin' gettin' "
    "fallin' sayin' makin' takin' climbin' mornin' O'Brien O'Neill O'Hara O'Malley O'Connor O'Reilly D'Angelo "
    "B'nai Qur'an Shi'ite Ba'ath e'er ne'er o'er 'n' '90s"
)


# Sentences


@dataclass(frozen=True, slots=True)
class Word:
    """A syntactic word of CoNLL-U. head: the word it depends on, by its place from 1; 0 for the root."""

    form: str
    lemma: str
    upos: str
    xpos: str
    feats: str
    head: int
    deprel: str
    spaced: bool = True  # a space comes after it


@dataclass(frozen=True, slots=True)
class Sentence:
    """A tree. multiword: (first, last, form, spaced) of the tokens that are several words, by their places from 1."""

    words: tuple[Word, ...]
    multiword: tuple[tuple[int, int, str, bool], ...] = ()
    comments: tuple[str, ...] = ()

    def conllu(self) -> str:
        tokens = {first: (last, form, spaced) for first, last, form, spaced in self.multiword}
        lines = list(self.comments)
        for place, word in enumerate(self.words, 1):
            if place in tokens:
                last, form, spaced = tokens[place]
                lines.append("\t".join([f"{place}-{last}", form, *"_" * 7, "_" if spaced else "SpaceAfter=No"]))
            fields = [word.form, word.lemma, word.upos, word.xpos, word.feats, str(word.head), word.deprel, "_"]
            lines.append("\t".join([str(place), *fields, "_" if word.spaced else "SpaceAfter=No"]))
        return "\n".join(lines) + "\n\n"


def read_sentence(block: str) -> Sentence:
    words: list[Word] = []
    multiword: list[tuple[int, int, str, bool]] = []
    comments = [line for line in block.split("\n") if line.startswith(("# newdoc", "# newpar"))]
    for line in block.split("\n"):
        fields = line.split("\t")
        if line.startswith("#") or "." in fields[0]:
            continue
        spaced = "SpaceAfter=No" not in fields[9]
        if "-" in fields[0]:
            first, last = map(int, fields[0].split("-"))
            multiword.append((first, last, fields[1], spaced))
        else:
            form, lemma, upos, xpos, feats = fields[1:6]
            words.append(Word(form, lemma, upos, xpos, feats, int(fields[6]), fields[7], spaced))
    return Sentence(tuple(words), tuple(multiword), tuple(comments))


def read_documents(files: Iterable[Path]) -> Iterator[list[Sentence]]:
    """The documents of a treebank, in order, spelling of contractions repaired where it is that of another word."""
    document: list[Sentence] = []
    for file in files:
        for block in file.read_text(encoding="utf-8").strip().split("\n\n"):
            if "# newdoc" in block and document:
                yield document
                document = []
            document.append(with_apostrophes(read_sentence(block)))
    yield document


def with_apostrophes(sentence: Sentence) -> Sentence:
    """`its` that is two words becomes `it's`: a transcriber's `its` never is."""
    words, multiword = list(sentence.words), []
    for first, last, form, spaced in sentence.multiword:
        clitic = CLITICS.get(words[last - 1].form.lower())
        if clitic and last == first + 1 and form == words[first - 1].form + words[last - 1].form:
            words[last - 1] = replace(words[last - 1], form=clitic)
            form = words[first - 1].form + clitic  # noqa: PLW2901
        multiword.append((first, last, form, spaced))
    return replace(sentence, words=tuple(words), multiword=tuple(multiword))


# The same sentences as a transcript of speech has them


def without(sentence: Sentence, dropped: frozenset[int]) -> Sentence:
    """The tree without some words (places from 1); what depended on them depends on their heads."""
    kept = [place for place in range(1, len(sentence.words) + 1) if place not in dropped]
    renumbered = {0: 0} | {place: number for number, place in enumerate(kept, 1)}

    def head(place: int) -> int:
        above = sentence.words[place - 1].head
        while above in dropped:
            above = sentence.words[above - 1].head
        return renumbered[above]

    words = tuple(replace(sentence.words[place - 1], head=head(place)) for place in kept)
    multiword = tuple(
        (renumbered[first], renumbered[last], form, spaced)
        for first, last, form, spaced in sentence.multiword
        if not dropped & set(range(first, last + 1))
    )
    return Sentence(words, multiword, sentence.comments)


def lower_cased(word: Word, first: bool) -> str:
    """A transcriber keeps the capitals of I, of names and of what comes of names (American)."""
    named = word.upos == "PROPN" or (word.xpos.startswith("NNP")) or (word.upos == "ADJ" and not first)
    if word.form in {"I", "I'm"} or (named and not (word.form.isupper() and len(word.form) > 4)):
        return word.form
    return word.form.capitalize() if named else word.form.lower()


def conversational(sentence: Sentence) -> Sentence | None:
    """The sentence in small letters, with commas and one terminator; None where nothing is left or it has addresses."""
    words = sentence.words
    if any(word.xpos == "ADD" for word in words):
        return None
    end = len(words) if words[-1].upos == "PUNCT" and words[-1].form[-1] in TERMINATORS else 0
    dropped = frozenset(
        place
        for place, word in enumerate(words, 1)
        if place != end
        and (word.upos in {"PUNCT", "SYM"} or word.xpos in {"NFP", "LS"})
        and (word.form != "," or place == len(words) or place == 1)
    )
    roots = [place for place, word in enumerate(words, 1) if word.head == 0]
    if len(dropped) + bool(end) >= len(words) or dropped.issuperset(roots) or end in roots:
        return None
    sentence = without(replace(sentence, words=words), dropped)
    words = tuple(replace(word, form=lower_cased(word, place == 0)) for place, word in enumerate(sentence.words))
    root = next(place for place, word in enumerate(words, 1) if word.head == 0)
    last = replace(words[-1], form=words[-1].form[-1], lemma=words[-1].form[-1], xpos=".") if end else None
    last = last or Word(".", ".", "PUNCT", ".", "_", root, "punct")
    words = (*words[: -1 if end else None], last)
    multiword = tuple(
        (first, at, "".join(word.form for word in words[first - 1 : at]), True)
        for first, at, form, _ in sentence.multiword
        if form == "".join(word.form for word in sentence.words[first - 1 : at])
    )
    spaced = tuple(replace(word, spaced=True) for word in words)
    return Sentence(spaced, multiword, ("# newpar",))


def contracted(sentence: Sentence, chance: random.Random) -> Sentence:
    """Some pairs of words drawn together as they are spoken: do not, it is, going to."""
    words, multiword = list(sentence.words), list(sentence.multiword)
    for place in range(1, len(words)):
        left, right = words[place - 1], words[place]
        pair = (left.form.lower(), right.form.lower())
        if any(first <= place + 1 and last >= place for first, last, _, _ in multiword) or chance.random() > 0.7:
            continue
        if pair[1] == "not" and pair[0] in BEFORE_NOT and left.upos == "AUX":
            words[place] = replace(right, form="n't")
        elif pair[0] in SUBJECTS and right.upos == "AUX" and pair[1] in CONTRACTED and words[place + 1 :]:
            if pair[0] not in {"i", "you", "we", "they"} and pair[1] in {"have", "are"}:
                continue
            words[place] = replace(right, form=CONTRACTED[pair[1]])
        elif pair in SPOKEN and right.upos == "PART":
            short = SPOKEN[pair]
            abbreviated = [feats_with(word, "Abbr=Yes") for word in (left, right)]
            words[place - 1] = replace(abbreviated[0], form=short[0]) if short[0] != left.form else left
            words[place] = replace(abbreviated[1], form=short[1])
        else:
            continue
        multiword.append((place, place + 1, words[place - 1].form + words[place].form, True))
    return replace(sentence, words=tuple(words), multiword=tuple(sorted(multiword)))


def feats_with(word: Word, feature: str) -> Word:
    feats = sorted({*(word.feats.split("|") if word.feats != "_" else ()), feature}, key=str.lower)
    return replace(word, feats="|".join(feats))


def interjection(form: str, head: int, deprel: str) -> Word:
    return Word(form, form, "INTJ", "UH", POLARITY.get(form, "_"), head, deprel)


def addressed(sentence: Sentence, chance: random.Random) -> Sentence:
    """Now and then with an interjection before it, or with a name before or after it, as people talk to each other."""
    drawn = chance.random()
    if drawn > 0.25:
        return sentence
    root = next(place for place, word in enumerate(sentence.words, 1) if word.head == 0)
    if drawn > 0.1:
        extra = [interjection(chance.choice(INTERJECTIONS), 0, "discourse")]
    else:
        name = chance.choice(NAMES)
        extra = [Word(name, name, "PROPN", "NNP", "Number=Sing", 0, "vocative")]
    comma = [Word(",", ",", "PUNCT", ",", "_", 0, "punct")] if chance.random() < 0.6 else []
    before = drawn > 0.04
    at = 0 if before else len(sentence.words) - 1
    return inserted(sentence, at, [*extra, *comma] if before else [*comma, *extra], root)


def inserted(sentence: Sentence, at: int, extra: Sequence[Word], root: int) -> Sentence:
    """The tree with words more after the `at`th, which depend on its root."""

    def moved(place: int) -> int:
        return place + len(extra) if place > at else place

    words = [replace(word, head=moved(word.head)) for word in sentence.words]
    words[at:at] = [replace(word, head=moved(root)) for word in extra]
    multiword = tuple((moved(first), moved(last), form, spaced) for first, last, form, spaced in sentence.multiword)
    return replace(sentence, words=tuple(words), multiword=multiword)


def transcript(sentences: Iterable[Sentence], chance: random.Random | None) -> list[Sentence]:
    """The sentences as a transcript has them. chance: also contract, interject and address; None: as written."""
    spoken = [each for sentence in sentences if (each := conversational(sentence)) is not None]
    if chance is None:
        return spoken
    spoken = [addressed(contracted(each, chance), chance) for each in spoken]
    stop = Word(".", ".", "PUNCT", ".", "_", 1, "punct")
    alone = [Sentence((interjection(form, 0, "root"), stop), comments=("# newpar",)) for form in INTERJECTIONS * 2]
    return spoken + alone


def contractions() -> list[Sentence]:
    """For the multiword expander: English contractions, and words with an apostrophe that are none."""
    pieces = [(word, clitic) for clitic, words in CONTRACTIONS.items() for word in words.split()]
    pieces += [("I", clitic) for clitic in ("'m", "'ve", "'ll", "'d")]
    splits: list[tuple[str, ...]] = [*pieces, *((word.capitalize(), clitic) for word, clitic in pieces)]
    splits += [tuple(split.split("+")) for split in SPLITS.split()]
    splits += [(name, "'s") for name in NAMES]
    return [bare(forms) for forms in splits] + [bare([form]) for form in UNSPLIT.split()]


def bare(forms: Sequence[str]) -> Sentence:
    """One token alone, with these words."""
    words = tuple(Word(form, form, "X", "FW", "_", at, "dep" if at else "root") for at, form in enumerate(forms))
    return Sentence(words, ((1, len(forms), "".join(forms), True),) if len(forms) > 1 else ())


def expansions(sentences: Sequence[Sentence], chance: random.Random) -> list[Sentence]:
    """The treebank's multiword tokens, each alone; and words that are none, those with an apostrophe above all."""
    multiword, single = [], set()
    for sentence in sentences:
        inside = {place for first, last, _, _ in sentence.multiword for place in range(first, last + 1)}
        multiword += [
            bare([w.form for w in sentence.words[first - 1 : last]]) for first, last, _, _ in sentence.multiword
        ]
        single |= {word.form for place, word in enumerate(sentence.words, 1) if place not in inside}
    apostrophe = sorted(form for form in single if "'" in form[:-1] and len(form) > 3)
    others = chance.sample(sorted(form for form in single if form.isalpha()), 150)
    return multiword + [bare([form]) for form in apostrophe + others]


def types(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Every word once: the lemmatizer's network is for words that its dictionary lacks."""
    seen = {(word.form, word.lemma, word.upos): word for sentence in sentences for word in sentence.words}
    kept = (word for word in seen.values() if word.deprel != "goeswith" and "Typo=Yes" not in word.feats)
    return [Sentence((replace(word, head=0, deprel="root"),)) for word in kept]
