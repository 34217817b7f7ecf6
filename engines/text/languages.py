"""Languages by their codes: ISO 639-1, which models and services take, and ISO 639-3, which CHAT takes."""

from __future__ import annotations

_PAIRS = """
af afr am amh ar ara as asm az aze ba bak be bel bg bul bn ben bo bod br bre bs bos ca cat cs ces cy cym da dan de deu
el ell en eng eo epo es spa et est eu eus fa fas fi fin fo fao fr fra ga gle gl glg gu guj ha hau he heb hi hin hr hrv
ht hat hu hun hy hye id ind is isl it ita ja jpn jv jav ka kat kk kaz km khm kn kan ko kor la lat lb ltz ln lin lo lao
lt lit lv lav mg mlg mi mri mk mkd ml mal mn mon mr mar ms msa mt mlt my mya ne nep nl nld nn nno no nor oc oci pa pan
pl pol ps pus pt por ro ron ru rus sa san sd snd si sin sk slk sl slv sn sna so som sq sqi sr srp su sun sv swe sw swa
ta tam te tel tg tgk th tha tk tuk tl tgl tr tur tt tat uk ukr ur urd uz uzb vi vie yi yid yo yor zh zho
"""
# The other codes of ISO 639-1, whose languages no model here has.
_OTHERS = """
aa ab ae ak an av ay bh bi ce ch co cr cu cv dv dz ee ff fj fy ga gd gn gv ho hz ia ie ig ii ik io iu iw jv kg
ki kj kl kr ks ku kv kw ky lg li lu mh na nb nd ng nr nv ny oj om os pi qu rm rn rw sc se sg sh sm ss st tn to
ts tw ty ug ve vo wa wo xh za zu
"""
_LONG = {
    **dict(zip(_PAIRS.split()[::2], _PAIRS.split()[1::2], strict=True)),
    "jw": "jav",
}  # jw is what Whisper calls Javanese
_SHORT = {long: short for short, long in _LONG.items() if short != "jw"} | {"cmn": "zh", "nob": "no"}


def is_language_code(code: str) -> bool:
    """Whether it can be one: two letters of ISO 639-1, or any three, with or without a region.

    >>> [is_language_code(code) for code in ("de", "xx", "yue", "pt-BR", "english", "")]
    [True, False, True, True, False, False]
    """
    base = code.replace("_", "-").partition("-")[0].lower()
    if not (base.isascii() and base.isalpha()):
        return False
    return base in _LONG or base in _OTHERS.split() if len(base) == 2 else len(base) == 3


def get_long_code(code: str) -> str:
    """ISO 639-3 for either code; what is not known stays as it is.

    >>> get_long_code("de"), get_long_code("en-US"), get_long_code("yue")
    ('deu', 'eng', 'yue')
    """
    base = code.replace("_", "-").partition("-")[0].lower()
    return _LONG.get(base, base)


def get_short_code(code: str) -> str:
    """ISO 639-1 for either code; what has none stays as it is.

    >>> get_short_code("deu"), get_short_code("cmn"), get_short_code("haw")
    ('de', 'zh', 'haw')
    """
    base = code.replace("_", "-").partition("-")[0].lower()
    return _SHORT.get(base, base)
