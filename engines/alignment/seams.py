"""Seams: where two windows heard the same stretch of a recording, its words are kept once."""

from __future__ import annotations

from collections.abc import Sequence

from prefork.engines.text.document import Word

_APART = 1.0  # seconds by which the times of one word heard twice differ at most


def join_words(left: Sequence[Word], right: Sequence[Word], start: float, end: float) -> list[Word]:
    """Words of a window, and after them those of the next one.

    start, end: seconds of the stretch that both heard; all words have times. The words are aligned by text and time
    (longest common subsequence); the left's hold up to the common one nearest to the middle, which both heard with
    some context, the right's from there on. Without a common word the middle itself parts them, unless one of the two
    heard nothing there.
    """
    middle = (start + end) / 2
    if not any(_middle(word) >= start for word in left) or not any(_middle(word) <= end for word in right):
        return _part([*left], [*right])
    pairs = _match(left, right, start - _APART, end + _APART)
    if pairs:
        i, j = min(pairs, key=lambda pair: abs(_middle(left[pair[0]]) - middle))
        return _part([*left[: i + 1]], [*right[j + 1 :]])
    return _part([w for w in left if _middle(w) < middle], [w for w in right if _middle(w) >= middle])


def _part(left: list[Word], right: list[Word]) -> list[Word]:
    """The words in one row, those of the left no longer than up to the right's first."""
    first = min((word.start for word in right if word.start is not None), default=None)
    if first is None:
        return [*left, *right]
    return [*(word.end_by(first) for word in left), *right]


def _match(left: Sequence[Word], right: Sequence[Word], start: float, end: float) -> list[tuple[int, int]]:
    """Indices of words that are the same in both, in order: as many as there can be."""
    rows = [i for i, word in enumerate(left) if _middle(word) >= start]
    columns = [j for j, word in enumerate(right) if _middle(word) <= end]
    best: list[list[tuple[tuple[int, int], ...]]] = [[()] * (len(columns) + 1) for _ in range(len(rows) + 1)]
    for a, i in enumerate(rows, 1):
        for b, j in enumerate(columns, 1):
            longest = max(best[a - 1][b], best[a][b - 1], key=len)
            if _is_same(left[i], right[j]) and len(best[a - 1][b - 1]) >= len(longest):
                longest = (*best[a - 1][b - 1], (i, j))
            best[a][b] = longest
    return list(best[-1][-1])


def _is_same(a: Word, b: Word) -> bool:
    text = _normalize(a.text)
    return bool(text) and text == _normalize(b.text) and abs(_middle(a) - _middle(b)) <= _APART


def _normalize(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _middle(word: Word) -> float:
    assert word.start is not None and word.end is not None
    return (word.start + word.end) / 2
