"""Numbers as they are spoken: the words for tokens that hold digits, as CHAT wants them."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

from prefork.engines.text.languages import get_short_code

_MOST_DIGITS = 9  # in a row without separators; more are read one by one, as telephone numbers are
_WITH_YEARS = frozenset({"en", "de", "nl", "da", "no"})  # that say 1961 otherwise than 1,961
_POINTS = {
    "en": "point", "de": "Komma", "nl": "komma", "fr": "virgule", "es": "coma", "it": "virgola", "pt": "vírgula",
    "ca": "coma", "ro": "virgulă", "da": "komma", "no": "komma", "sv": "komma", "fi": "pilkku", "is": "komma",
    "pl": "przecinek", "cs": "celá", "sk": "celá", "sl": "vejica", "sr": "zarez", "ru": "запятая", "uk": "кома",
    "hu": "egész", "tr": "virgül", "id": "koma", "vi": "phẩy", "he": "נקודה", "ar": "فاصلة", "fa": "ممیز",
    "zh": "点", "ja": "点", "ko": "점", "th": "จุด", "lt": "kablelis", "lv": "komats",
}  # fmt: skip
_WITH_POINTS = frozenset({"en", "zh", "ja", "ko", "he", "th", "yue", "hi", "bn", "te", "kn", "am"})  # 3.5, not 3,5
_PERCENT = {
    "en": "percent", "de": "Prozent", "nl": "procent", "fr": "pour cent", "es": "por ciento", "it": "per cento",
    "pt": "por cento", "ca": "per cent", "ro": "la sută", "da": "procent", "no": "prosent", "sv": "procent",
    "fi": "prosenttia", "pl": "procent", "cs": "procent", "sk": "percent", "ru": "процентов", "uk": "відсотків",
    "hu": "százalék", "tr": "yüzde", "id": "persen", "he": "אחוז", "ar": "بالمئة", "fa": "درصد", "ja": "パーセント",
    "ko": "퍼센트", "vi": "phần trăm", "el": "τοις εκατό", "hr": "posto", "sl": "odstotkov", "sr": "odsto",
}  # fmt: skip
_SIGNS = {
    "+": {"en": "plus", "de": "plus", "nl": "plus", "fr": "plus", "es": "más", "it": "più", "pt": "mais", "zh": "加"},
    "=": {"en": "equals", "de": "gleich", "nl": "is", "fr": "égale", "es": "igual", "it": "uguale", "zh": "等于"},
    "@": {"en": "at", "de": "at", "nl": "at", "fr": "arobase", "es": "arroba", "it": "chiocciola", "pt": "arroba"},
}
_AND = {
    "en": "and", "de": "und", "nl": "en", "fr": "et", "es": "y", "it": "e", "pt": "e", "ca": "i", "da": "og",
    "no": "og", "sv": "och", "fi": "ja", "pl": "i", "cs": "a", "sk": "a", "ru": "и", "uk": "та", "hu": "és", "tr": "ve",
    "ro": "și",
}  # fmt: skip
_CURRENCIES = {
    "€": ("euro", "euros"), "$": ("dollar", "dollars"), "£": ("pound", "pounds"), "¥": ("yen", "yen"),
    "₹": ("rupee", "rupees"), "₽": ("rouble", "roubles"), "₩": ("won", "won"), "¢": ("cent", "cents"),
}  # fmt: skip
_LOCAL_CURRENCIES = {
    "de": {"€": "Euro", "$": "Dollar", "£": "Pfund", "¥": "Yen"},
    "fr": {"€": "euros", "$": "dollars", "£": "livres", "¥": "yens"},
    "es": {"€": "euros", "$": "dólares", "£": "libras", "¥": "yenes"},
    "it": {"€": "euro", "$": "dollari", "£": "sterline", "¥": "yen"},
    "pt": {"€": "euros", "$": "dólares", "£": "libras", "¥": "ienes"},
    "zh": {"€": "欧元", "$": "美元", "£": "英镑", "¥": "元"},
    "ja": {"€": "ユーロ", "$": "ドル", "£": "ポンド", "¥": "円"},
    "ru": {"€": "евро", "$": "долларов", "£": "фунтов", "₽": "рублей"},
    "ar": {"€": "يورو", "$": "دولار", "£": "جنيه"},
}
_ORDINALS = {"en": r"(?:st|nd|rd|th)", "fr": r"(?:ers?|ères?|res?|èmes?|emes?|es?|nde?s?)", "nl": r"(?:e|de|ste)",
             "es": r"\.?[ºª°]", "it": r"[ºª°]", "pt": r"\.?[ºª°]", "sv": r":[ae]"}  # fmt: skip
_SCALES = {"k": "thousand", "m": "million", "mn": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
_FRACTIONS = {"1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter", "3/4": "three quarters"}
_DIGITS_OF_CHINESE = "零一二三四五六七八九"
_SIGN = "".join(_CURRENCIES)
_ENDLESS = frozenset({"am"})  # num2words 0.5.14 does not come back from 123,456,789
_NUM2WORDS = {"kk": "kz"}  # its codes that are not ISO 639's


class _Unspeakable(Exception):
    """No words are known for it."""


def spell_numbers(token: str, language: str) -> tuple[str, ...] | None:
    """The words of a token with digits or signs for words; None if they are not known in the language.

    language: ISO 639-1 or 639-3.

    >>> spell_numbers("1961", "eng"), spell_numbers("£3.50", "eng"), spell_numbers("25%", "deu")
    (('nineteen', 'sixty', 'one'), ('three', 'pounds', 'fifty'), ('fünfundzwanzig', 'Prozent'))
    """
    text = "".join(_write_ascii(character) for character in token).strip(".,:;!?\"'()[]")
    text = text.replace("\u2044", "/").replace("\u2212", "-")
    try:
        return tuple(word for part in _spell(text, get_short_code(language)) for word in part.split())
    except _Unspeakable:
        return None


def spell_sign(sign: str, language: str) -> str:
    """What `&`, `+`, `=` or `@` is read as; empty if that is not known."""
    return (_AND if sign == "&" else _SIGNS.get(sign, {})).get(get_short_code(language), "")


def _write_ascii(character: str) -> str:
    """Digits of any script, superscripts and fractions as the digits of a decimal number."""
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    plain = unicodedata.normalize("NFKC", character) if unicodedata.category(character) == "No" else character
    return character if any(not c.isascii() and c != "\u2044" for c in plain) else plain


def _spell(text: str, language: str) -> Iterator[str]:
    sign, amount = _find_currency(text)
    if sign:
        yield from _spell_amount(amount, sign, language)
    elif text.endswith("%") and text[:-1]:
        yield from _spell_percent(text[:-1], language)
    elif text == "%":
        yield _look_up(_PERCENT, language)
    elif language == "en" and text in _FRACTIONS:
        yield _FRACTIONS[text]
    elif re.fullmatch(r"[+-]\d.*", text):
        yield {"-": "minus", "+": "plus"}[text[0]] if language in ("en", "de", "nl") else ""
        yield from _spell(text[1:], language)
    elif time := re.fullmatch(r"(\d{1,2}):(\d\d)", text):
        yield from _spell_time(time[1], time[2], language)
    elif ordinal := _find_ordinal(text, language):
        yield _call(ordinal, language, "ordinal")
    elif language == "en" and (many := re.fullmatch(r"'?(\d+)'?s", text)):
        yield _make_plural(_spell_number(many[1], language))
    elif re.fullmatch(r"\d[\d.,'\u00a0\u202f]*", text):
        yield _spell_number(text, language)
    else:
        yield from _spell_mixture(text, language)


def _find_currency(text: str) -> tuple[str, str]:
    found = re.fullmatch(rf"([{re.escape(_SIGN)}])(\d.*)|(\d.*?)([{re.escape(_SIGN)}])", text)
    return (found[1] or found[4], found[2] or found[3]) if found else ("", "")


def _spell_amount(amount: str, sign: str, language: str) -> Iterator[str]:
    one, many = _CURRENCIES[sign]
    name = (one if amount == "1" else many) if language == "en" else _LOCAL_CURRENCIES.get(language, {}).get(sign, one)
    cents = re.fullmatch(r"([\d.,]*\d)[.,](\d\d)", amount)
    if cents is None:
        scale = re.fullmatch(r"([\d.,]+)([a-z]+)", amount.lower()) if language == "en" else None
        if scale and scale[2] in _SCALES:
            yield from (_spell_number(scale[1], language), _SCALES[scale[2]])
        else:
            yield from _spell(amount, language)
        yield name
        return
    yield _spell_number(cents[1], language)
    yield one if language == "en" and cents[1] == "1" else name
    if cents[2] != "00":
        yield _spell_number(str(int(cents[2])), language)


def _spell_percent(amount: str, language: str) -> Iterator[str]:
    if language == "zh":
        yield "百分之" + "".join(_spell(amount, language))
        return
    words = list(_spell(amount, language))
    percent = _look_up(_PERCENT, language)
    yield from [percent, *words] if language == "tr" else [*words, percent]


def _spell_time(hours: str, minutes: str, language: str) -> Iterator[str]:
    yield _call(int(hours), language)
    if language == "en" and minutes == "00":
        yield "o'clock" if 1 <= int(hours) <= 12 else "hundred"
    elif language == "en" and minutes[0] == "0":
        yield "oh"
        yield _call(int(minutes), language)
    elif int(minutes):
        yield {"de": "Uhr"}.get(language, "")
        yield _call(int(minutes), language)
    else:
        yield {"de": "Uhr"}.get(language, "")


def _find_ordinal(text: str, language: str) -> int:
    suffix = _ORDINALS.get(language)
    found = re.fullmatch(rf"([1-9]\d{{0,5}}){suffix}", text.lower()) if suffix else None
    return int(found[1]) if found else 0


def _make_plural(words: str) -> str:
    return words[:-1] + "ies" if words.endswith("y") else words + "es" if words.endswith(("x", "s")) else words + "s"


def _spell_number(text: str, language: str) -> str:
    """A number with separators of thousands and decimals."""
    point = "." if language in _WITH_POINTS else ","
    group = {".": ",", ",": "."}[point]
    text = re.sub("['\u00a0\u202f]", "", text).strip(".,")
    if re.fullmatch(rf"[1-9]\d{{0,2}}({re.escape(group)}\d{{3}})+({re.escape(point)}\d+)?", text):
        whole, _, decimals = text.replace(group, "").partition(point)
        said = _call(int(whole), language)
        return f"{said} {_name_point(language)} {_spell_digits(decimals, language)}" if decimals else said
    parts = [part for part in re.split(r"[.,]+", text) if part]
    if re.fullmatch(r"\d+[.,]\d+", text):  # also 3.5 where 3,5 is usual
        whole, decimals = _spell_whole(parts[0], language), _spell_digits(parts[1], language)
        return f"{whole} {_name_point(language)} {decimals}"
    return " ".join(_spell_whole(part, language) for part in parts)  # 192.168.0.1, 24.12.2020


def _spell_whole(digits: str, language: str) -> str:
    if len(digits) > 1 and (digits.startswith("0") or len(digits) > _MOST_DIGITS):
        return _spell_digits(digits, language)
    number = int(digits)
    year = len(digits) == 4 and (1100 <= number < 2100) and language in _WITH_YEARS
    return _call(number, language, "year" if year else "cardinal")


def _spell_digits(digits: str, language: str) -> str:
    return " ".join(_call(int(digit), language) for digit in digits)


def _spell_mixture(text: str, language: str) -> Iterator[str]:
    """MP3, 24/7, 1914-18, COVID-19: the letters as they are, the numbers in words."""
    if not any(character.isdigit() for character in text):
        raise _Unspeakable
    for run in re.findall(r"\d+(?:[.,]\d+)*|[^\d]+", text):
        if run[0].isdigit():
            yield _spell_number(run, language)
        elif word := "".join(c for c in run if unicodedata.category(c)[0] in "LM" or c in "'-").strip("'-"):
            yield word


def _look_up(table: dict[str, str], language: str) -> str:
    if language not in table:
        raise _Unspeakable
    return table[language]


def _name_point(language: str) -> str:
    """What the decimal sign is called: num2words knows it of some languages more. Raises _Unspeakable."""
    if language in _POINTS:
        return _POINTS[language]
    from num2words import CONVERTER_CLASSES

    named = getattr(CONVERTER_CLASSES.get(_NUM2WORDS.get(language, language)), "pointword", "")
    if not isinstance(named, str) or not any(character.isalpha() for character in named):
        raise _Unspeakable
    return named


@functools.lru_cache(maxsize=4096)
def _call(number: int, language: str, kind: str = "cardinal") -> str:
    """What a whole number is called. Raises _Unspeakable."""
    if language in ("zh", "yue"):
        return _call_in_chinese(number)
    from num2words import CONVERTER_CLASSES, num2words

    code = _NUM2WORDS.get(language, language)
    if code not in CONVERTER_CLASSES or code in _ENDLESS:
        raise _Unspeakable
    try:
        said = num2words(number, lang=code, to=kind)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        raise _Unspeakable from error
    words = re.sub(r"[,\u00ad]", "", said)
    return re.sub(r"[\s-]+", " ", words) if language == "en" else " ".join(words.split())


def _call_in_chinese(number: int) -> str:
    """
    >>> _call_in_chinese(10), _call_in_chinese(1205), _call_in_chinese(200_010_000)
    ('十', '一千二百零五', '二亿零一万')
    """
    if number == 0:
        return _DIGITS_OF_CHINESE[0]
    groups = []
    while number:
        number, rest = divmod(number, 10_000)
        groups.append(rest)
    said = ""
    for place in range(len(groups) - 1, -1, -1):
        group = groups[place]
        if group:
            gap = bool(said) and (group < 1000 or groups[place + 1] == 0)
            said += ("零" if gap else "") + _call_group(group) + ("", "万", "亿", "兆")[place]
    return said.removeprefix("一") if said.startswith("一十") else said


def _call_group(group: int) -> str:
    said, gap = "", False
    for place, digit in zip("千百十 ", f"{group:04}", strict=True):
        if digit == "0":
            gap = bool(said)
            continue
        said += ("零" if gap else "") + _DIGITS_OF_CHINESE[int(digit)] + place.strip()
        gap = False
    return said
