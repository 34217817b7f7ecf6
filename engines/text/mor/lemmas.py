"""A lemma as %mor can hold it.

Not allowed are white space and what has a meaning there: `| - ~ + . ?` anywhere, `! # $ @ % = & [ ] < > ( ) “ ”` at the
beginning (chatter, grammar.js, mor_lemma); `^` separates alternatives for CLAN. What becomes of them is batchalign's
cleaning, where it has one.
"""

from __future__ import annotations

import re
import unicodedata

_DASH = "–"  # noqa: RUF001  what %mor has for a hyphen within a lemma
_DROPPED = str.maketrans("", "", "'’‘`\"“”„«»「」『』,?+~$()[]<>{}")  # noqa: RUF001
_REPLACED = str.maketrans("#&^", "___")
_NOT_FIRST = "!@%=_-"
_UNHOLDABLE = re.compile(r"[.?!|+~$#@%=&^\[\]<>(),“”]")
_MODEL_MARKS = re.compile(r"<unk>|<SOS>", re.IGNORECASE)  # what a sequence model leaves where it failed
_JOINERS = "\u200c\u200d"  # they tell words apart, in Persian and in the scripts of India


def clean_lemma(lemma: str, form: str) -> str:
    """Never empty. The form stands in for a lemma that says nothing; `x` for a word that has neither.

    >>> clean_lemma("mother-in-law", ""), clean_lemma("o'clock", ""), clean_lemma("...", "...")
    ('mother–in–law', 'oclock', '___')
    """
    for candidate in (lemma.partition("|")[0], form.replace("|", ""), lemma.replace("|", "")):
        text = _drop_invisible(_MODEL_MARKS.sub("", candidate))
        if any(character.isalnum() for character in text):
            return _clean_word(text)
    return _UNHOLDABLE.sub("_", _drop_invisible(form or lemma)).replace("-", _DASH) or "x"


def _clean_word(text: str) -> str:
    """text: with a letter or a digit, which stays."""
    text = re.sub(r"(?<=[^\W_])@\w$", "", text)
    text = re.sub(r"(?<=\d)\.(?=\d)", "_", text).replace(".", "")
    text = re.sub(r"-+", "-", text.translate(_DROPPED).translate(_REPLACED)).strip("-_")
    while text[0] in _NOT_FIRST or unicodedata.category(text[0])[0] == "M":  # a mark would sit on the bar before it
        text = text[1:]
    return text.replace("-", _DASH)


def _drop_invisible(text: str) -> str:
    """Without white space, controls, and marks of direction."""
    return "".join(
        c for c in text if not c.isspace() and (c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    ).strip(_JOINERS)
