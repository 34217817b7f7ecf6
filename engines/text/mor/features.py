"""Which UD features %mor shows, in which order; a table for all languages, and what single languages add to it.

Source: batchalign3, crates/batchalign-chat-ops/src/nlp (features.rs, lang_en.rs, lang_fr.rs). The defaults are its own.
To refine a language, write `amend` (UD features before the table sees them) or `add` (features behind the table's) and
name them in REFINEMENTS under the language's ISO 639-3 code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prefork.engines.text.document import SyntacticWord
from prefork.engines.text.mor.english import is_irregular

Features = Mapping[str, str]  # UD's, by name
Slot = Callable[[Features], str]  # one place in a %mor item; empty if there is nothing to show


@dataclass(frozen=True, slots=True)
class Refinement:
    """What a language changes. amend: UD features for the table. add: %mor features that follow the table's."""

    amend: Callable[[SyntacticWord, Features], Features] = lambda _, features: features
    add: Callable[[SyntacticWord, Features], tuple[str, ...]] = lambda _word, _features: ()


def _show(name: str, default: str = "", hidden: tuple[str, ...] = ()) -> Slot:
    """The feature's value, unless it is one of those that go without saying."""

    def show(features: Features) -> str:
        value = features.get(name, default)
        return "" if value in hidden else value

    return show


def _show_lower(name: str) -> Slot:
    return lambda features: features.get(name, "").lower()


def _show_reflexive(features: Features) -> str:
    return "reflx" if features.get("Reflex") == "Yes" else ""


def _show_agreement(person: str) -> Slot:
    """Number and person as one: `S3`, `P1`; person 0, the impersonal of Estonian and Finnish, is 4."""

    def show(features: Features) -> str:
        value = features.get("Person", person)
        return features.get("Number", "Sing")[:1] + ("4" if value == "0" else value)

    return show


def _show_possessor(features: Features) -> str:
    return features.get("Number[psor]", "")[:1] + features.get("Person[psor]", "")


_GENDER = _show("Gender", hidden=("Com", "Com,Neut"))
_VERB = (
    _show("VerbForm", "Inf"),
    _show("Aspect"),
    _show("Mood"),
    _show("Tense"),
    _show("Polarity"),
    _show("Polite"),
    _show_lower("HebBinyan"),
    _show_lower("HebExistential"),
    _show_agreement(person=""),
)
_NOUN = (_GENDER, _show("Number", hidden=("Sing",)), _show("Case"), _show("PronType"))
TABLE: dict[str, tuple[Slot, ...]] = {
    "VERB": _VERB,
    "AUX": _VERB,
    "NOUN": _NOUN,
    "PROPN": _NOUN,
    "PRON": (_show("PronType", "Int"), _show("Case"), _show_reflexive, _show_agreement(person="1")),
    "DET": (_GENDER, _show("Definite", "Def"), _show("PronType"), _show("Number"), _show_possessor),
    "ADJ": (_show("Degree", hidden=("Pos",)), _show("Case"), _show_agreement(person="1")),
}


_GERUND = re.compile(r"[aeiouy].*ing$")  # reading, but not thing


def _amend_english(word: SyntacticWord, features: Features) -> Features:
    if word.upos == "PRON" and word.form.lower() in ("that", "who"):
        return {**features, "Number": "", "Person": ""}
    if (
        word.upos == "VERB"
        and word.form.lower() == word.lemma.lower()
        and features.get("Person") == "3"
        and features.get("Number") == "Sing"
        and features.get("Tense") == "Pres"
    ):  # `it bang`: the analyser infers the agreement that the child left out
        return {name: value for name, value in features.items() if name != "Person"}
    return features


def _add_english(word: SyntacticWord, features: Features) -> tuple[str, ...]:
    if word.upos == "NOUN" and _GERUND.search(word.form):
        return ("Ger",)
    if word.upos in ("VERB", "AUX") and features.get("Tense") == "Past" and is_irregular(word.lemma, word.form):
        return ("irr",)
    return ()


_FRENCH_CASES = {
    **dict.fromkeys(("que", "quoi", "me", "te", "le", "la", "les", "leur"), "Acc"),
    **dict.fromkeys(("qui", "je", "tu", "il", "elle", "ils", "elles", "moi", "toi", "lui", "eux"), "Nom"),
}


def _amend_french(word: SyntacticWord, features: Features) -> Features:
    if word.upos == "PRON":
        return {**features, "Case": _FRENCH_CASES.get(word.form.lower().strip("'"), "")}
    if word.upos == "DET" and features.get("Number") != "Plur":
        return {"Gender": "Masc", **features}
    return features


def _add_french(word: SyntacticWord, features: Features) -> tuple[str, ...]:
    """Apm: the plural can be heard, as in `chevaux`."""
    audible = word.form.lower().endswith("aux") and word.lemma.lower().endswith(("al", "ail"))
    return ("Apm",) if word.upos == "NOUN" and features.get("Number") == "Plur" and audible else ()


REFINEMENTS: dict[str, Refinement] = {
    "eng": Refinement(_amend_english, _add_english),
    "fra": Refinement(_amend_french, _add_french),
}


def list_features(word: SyntacticWord, language: str) -> tuple[str, ...]:
    """What follows the lemma in %mor. language: ISO 639-3 code."""
    features: Features = dict(pair.split("=", 1) for pair in word.feats.split("|") if "=" in pair)
    refinement = REFINEMENTS.get(language, Refinement())
    features = refinement.amend(word, features)
    if word.upos in ("NOUN", "PROPN") and word.deprel == "obj":
        features = {"Case": "Acc", **features}
    shown = [slot(features) for slot in TABLE.get(word.upos, ())]
    values = (re.sub(r"[^\w,]", "", value) for value in (*shown, *refinement.add(word, features)))
    return tuple(value for value in values if value)
