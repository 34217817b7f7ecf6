"""Shuffling and sampling as fairseq2 does them, draw for draw.

Sources: `shuffle_data_source.cc` and `sample_data_source.cc` of fairseq2 (027bdeb); numbers are drawn from MT19937,
seeded as PyTorch's CPU generator and numpy's RandomState seed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
_DRAWS = 4096  # numbers that are drawn at a time


class Generator:
    """32-bit numbers of MT19937.

    >>> generator = Generator(2)
    >>> generator.draw(), generator.draw()
    (1872583848, 794921487)
    """

    def __init__(self, seed: int) -> None:
        state: Any = np.random.RandomState(seed & 0xFFFF_FFFF).get_state(legacy=False)
        self._bits = np.random.MT19937()
        self._bits.state = state
        self._drawn: list[int] = []

    def draw(self) -> int:
        if not self._drawn:
            self._drawn = self._bits.random_raw(_DRAWS).tolist()[::-1]
        return self._drawn.pop()

    def draw_long(self) -> int:
        """64 bits: the first number drawn is the upper half."""
        return self.draw() << 32 | self.draw()

    def draw_uniform(self) -> np.float32:
        """[0, 1) with 24 bits."""
        return np.float32((self.draw() & 0xFF_FFFF) * 2.0**-24)


def shuffle(items: Iterable[T], window: int, seed: int) -> Iterator[T]:
    """A buffer of `window` items is filled and shuffled (Fisher-Yates). They go out in its order, each replaced by the
    next that comes; when all places have gone out, the buffer is shuffled again. window: 0 for all items; 1: nothing is
    shuffled.

    >>> list(shuffle(range(6), window=3, seed=2))
    [1, 0, 2, 5, 3, 4]
    """
    source = iter(items)
    if window == 1:
        yield from source
        return
    generator = Generator(seed)
    buffer: list[T] = []
    for item in source:
        buffer.append(item)
        if len(buffer) == window:
            break
    end = len(buffer)  # items beyond it have gone out for good
    is_dry = False
    while end:
        _shuffle_buffer(buffer, end, generator)
        position = 0
        while position < end:
            item = buffer[position]
            if not is_dry:
                try:
                    buffer[position] = next(source)
                except StopIteration:
                    is_dry, last = True, position
            yield item
            position += 1
        end = last if is_dry and end == len(buffer) else 0 if is_dry else end


def _shuffle_buffer(buffer: list[Any], count: int, generator: Generator) -> None:
    for size in range(count, 1, -1):
        place = generator.draw_long() % size
        buffer[size - 1], buffer[place] = buffer[place], buffer[size - 1]


def sample(make_sources: Sequence[Callable[[int], Iterator[T]]], weights: Sequence[float], seed: int) -> Iterator[T]:
    """Draws from sources by their weights. One that has ended starts over; when all have ended once, nothing more is
    drawn. make_sources: called with how often the source was started before. Raises ValueError if one is empty.
    """
    generator = Generator(seed)
    sums = np.cumsum(np.asarray(weights, np.float32), dtype=np.float32)
    if abs(float(sums[-1]) - 1.0) > 1e-5:
        sums = (sums / sums[-1]).astype(np.float32)
    passes = [0] * len(make_sources)
    sources = [make(0) for make in make_sources]
    missing = object()

    def take(number: int) -> T:
        item: Any = next(sources[number], missing)
        if item is missing:
            passes[number] += 1
            sources[number] = make_sources[number](passes[number])
            item = next(sources[number], missing)
            if item is missing:
                raise ValueError(f"partition {number} has no rows that pass, and cannot be sampled; leave it out")
        return item  # type: ignore[no-any-return]

    heads = [take(number) for number in range(len(sources))]
    while not all(passes):
        number = min(int(np.searchsorted(sums, generator.draw_uniform(), side="left")), len(sources) - 1)
        item, heads[number] = heads[number], take(number)
        yield item


def find_weights(
    hours: Mapping[tuple[str, str], float], beta_corpus: float, beta_language: float
) -> dict[tuple[str, str], float]:
    """By (corpus, language): (hours of the corpus / all hours) ** beta_corpus, normalised over corpora, times the same
    of the language within its corpus with beta_language. Source: omnilingual-asr's `get_partition_weights_from_betas`.
    Raises ValueError for hours that are none.

    >>> find_weights({("a", "eng"): 3.0, ("a", "deu"): 1.0, ("b", "eng"): 4.0}, 1.0, 0.0)
    {('a', 'eng'): 0.25, ('a', 'deu'): 0.25, ('b', 'eng'): 0.5}
    """
    if not hours or not all(value > 0 for value in hours.values()):
        raise ValueError(
            f"`hours` must be greater than 0 for each corpus and language, but are {dict(hours)!r} instead"
        )
    corpora: dict[str, float] = {}
    for (corpus, _), value in hours.items():
        corpora[corpus] = corpora.get(corpus, 0.0) + value
    of_corpora = _normalise(corpora, beta_corpus)
    weights: dict[tuple[str, str], float] = {}
    for corpus in corpora:
        own = {language: value for (name, language), value in hours.items() if name == corpus}
        weights |= {(corpus, name): of_corpora[corpus] * w for name, w in _normalise(own, beta_language).items()}
    return {key: weights[key] for key in hours}


def _normalise(hours: Mapping[str, float], beta: float) -> dict[str, float]:
    total = sum(hours.values())
    powers = {name: (value / total) ** beta for name, value in hours.items()}
    whole = sum(powers.values())
    return {name: power / whole for name, power in powers.items()}


def permute(count: int, seed: int, turn: int) -> list[int]:
    """The permutation of a turn, from 0: all of a seed come from one generator. Source: fairseq2's
    `list_parquet_fragments`."""
    generator = np.random.RandomState(seed & 0xFFFF_FFFF)
    for _ in range(turn):
        generator.permutation(count)
    return [int(place) for place in generator.permutation(count)]
