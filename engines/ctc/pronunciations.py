"""How English words are pronounced: as a dictionary says, or else as their letters are usually read."""

from __future__ import annotations

import functools
import gzip
import string
import unicodedata
import zlib
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from prefork.engines.ctc.phone_head import PHONES

FILE = "pronunciations.gz"
CODES = (string.ascii_uppercase + string.ascii_lowercase)[: len(PHONES)]  # a character for each phone
# What a rule may look at, letters to the left and to the right of one, the most first; "#" stands beyond the word.
CONTEXTS = ((3, 4), (3, 3), (2, 3), (2, 2), (1, 2), (1, 1), (0, 1), (0, 0))
_REMEMBERED = 10_000  # words
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´", "'"))  # noqa: RUF001


class Pronunciations:
    """words: a line for each, sorted: the word and its pronunciations in CODES, the usual one first. rules: what a
    letter is read as, by the letter with its neighbours, written before and after "<"."""

    def __init__(self, words: bytes, rules: Mapping[str, str]) -> None:
        self._words = words
        self._rules = rules
        self._recall = functools.lru_cache(maxsize=_REMEMBERED)(self._find)

    @classmethod
    def read(cls, path: Path) -> Pronunciations:
        """Raises ValueError if the file is damaged: it holds the words, an empty line, and the rules."""
        try:
            words, rules = gzip.decompress(path.read_bytes()).split(b"\n\n")
            table = dict(line.split(" ") for line in rules.decode("ascii").splitlines())
        except (EOFError, zlib.error, OSError, ValueError) as error:
            raise ValueError(f"{path.name} cannot be read ({error})") from error
        if wrong := {code for codes in table.values() for code in codes} - set(CODES):
            raise ValueError(f"{path.name} has phones that are not known ({', '.join(sorted(wrong)[:3])})")
        return cls(words + b"\n", table)

    def pronounce(self, word: str) -> tuple[tuple[int, ...], ...]:
        """The word's pronunciations, each the columns of its phones; none of a word with digits, or with letters that
        English does not have."""
        plain = unicodedata.normalize("NFD", word.translate(_APOSTROPHES).lower())
        letters = "".join(character for character in plain if not unicodedata.combining(character))
        parts = ["".join(part) for is_letter, part in groupby(letters, _is_letter) if is_letter]
        if any(c.isalnum() and not _is_letter(c) for c in letters) or not any(part.strip("'") for part in parts):
            return ()
        said = [self._recall(part) for part in parts if part.strip("'")]
        return said[0] if len(said) == 1 else (tuple(phone for ways in said for phone in (ways or ((),))[0]),)

    def _find(self, letters: str) -> tuple[tuple[int, ...], ...]:
        for form in (letters, letters.strip("'"), letters.replace("'", "")):
            if codes := self._look_up(form.encode()):
                return tuple(tuple(1 + CODES.index(code) for code in said) for said in codes.decode().split(" "))
        read = "".join(read_letter(self._rules, letters, place) for place in range(len(letters)))
        return (tuple(1 + CODES.index(code) for code in read),) if read else ()

    def _look_up(self, word: bytes) -> bytes:
        """The rest of the word's line; empty if there is none."""
        low, high = 0, len(self._words)
        while low < high:
            begin = max(low, self._words.rfind(b"\n", low, (low + high) // 2) + 1)
            end = self._words.index(b"\n", begin)
            found, _, codes = self._words[begin:end].partition(b" ")
            if found == word:
                return codes
            low, high = (end + 1, high) if found < word else (low, begin)
        return b""


def _is_letter(character: str) -> bool:
    return character in string.ascii_lowercase or character == "'"


def read_letter(
    rules: Mapping[str, str], letters: str, place: int, contexts: tuple[tuple[int, int], ...] = CONTEXTS
) -> str:
    """What the letter at that place is read as, in CODES; empty if it is silent."""
    widest = max(left for left, _ in CONTEXTS), max(right for _, right in CONTEXTS)
    padded = "#" * widest[0] + letters + "#" * widest[1]
    at = place + widest[0]
    keys = (f"{padded[at - left : at]}<{padded[at : at + 1 + right]}" for left, right in contexts)
    return next((rules[key] for key in keys if key in rules), "")
