"""The order of a data set's batches: a pure function of fragments, lengths and options, so that a position is a number.

    fragments, permuted -> examples, shuffled in a window -> batches, shuffled in a window -> the first max_num_batches

No recording is read for it. Each epoch is a whole: what is left in buckets and windows goes out at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from prefork.data.fragments import ChosenRows, Fragment
from prefork.data.options import PipelineOptions
from prefork.data.shuffling import find_weights, permute, sample, shuffle
from prefork.engines.base import InputError
from prefork.engines.batching import Batching, batch_by_length

_EPOCH = 0x9E37_79B1  # between the seeds of two epochs


class Example(NamedTuple):
    """A row that waits. reading: which reading of a fragment it is of; place: among the rows of it that pass."""

    reading: int
    place: int
    length: int


def order_batches(
    fragments: Sequence[Fragment],
    options: PipelineOptions,
    epoch: int,
    read: Callable[[Iterator[Fragment]], Iterator[tuple[int, ChosenRows]]],
) -> Iterator[list[Example]]:
    """The batches of an epoch, from 0. read: takes fragments in the order in which they are to be read, and yields a
    number for each reading, and the rows. Raises InputError if there are fewer fragments than processes."""
    seed = (options.seed + epoch * _EPOCH) & 0xFFFF_FFFF
    examples = shuffle(_list_examples(fragments, options, epoch, read), options.example_shuffle_window, seed)
    batches = shuffle(group(examples, options.make_batching()), options.batch_shuffle_window, seed + 1)
    return islice(batches, options.max_num_batches)


def _list_examples(
    fragments: Sequence[Fragment],
    options: PipelineOptions,
    epoch: int,
    read: Callable[[Iterator[Fragment]], Iterator[tuple[int, ChosenRows]]],
) -> Iterator[Example]:
    partitions = split_partitions(fragments, options)

    def start(number: int, restarts: int) -> Iterator[Example]:
        seed = options.seed + number
        own = order_fragments(partitions[number][1], options, seed, epoch + restarts)
        for reading, chosen in read(own):
            for place, length in enumerate(chosen.lengths):
                yield Example(reading, place, length)

    if len(partitions) == 1:
        return start(0, 0)
    weights = [weight for weight, _ in partitions]
    seed = (options.sampling_seed + epoch * _EPOCH) & 0xFFFF_FFFF
    return sample([partial(start, number) for number in range(len(partitions))], weights, seed)


def split_partitions(fragments: Sequence[Fragment], options: PipelineOptions) -> list[tuple[float, Sequence[Fragment]]]:
    """By corpus and language, with their weights, those that have none left out; or all of them as one. Raises
    InputError."""
    if options.hours is None or options.beta_corpus is None or options.beta_language is None:
        return [(1.0, fragments)]
    weights = find_weights(options.hours, options.beta_corpus, options.beta_language)
    found: dict[tuple[str, str], list[Fragment]] = {}
    for fragment in fragments:
        if fragment.partition in weights:
            found.setdefault(fragment.partition, []).append(fragment)
    if not found:
        known = ", ".join(sorted({"/".join(fragment.partition) for fragment in fragments}))
        raise InputError(f"`hours` names none of the corpora and languages that there are: {known}")
    return [(weights[key], own) for key, own in found.items()]


def order_fragments(
    fragments: Sequence[Fragment], options: PipelineOptions, seed: int, turn: int
) -> Iterator[Fragment]:
    """Those of this process, as a turn reads them. Raises InputError if it has none."""
    if options.world_size > len(fragments):
        raise InputError(
            f"`world_size` must be at most the number of fragments ({len(fragments)}), but is {options.world_size} "
            "instead: write smaller row groups, or use fewer processes"
        )
    window = options.fragment_shuffle_window
    if window == -1:
        ordered: Iterable[Fragment] = (fragments[place] for place in permute(len(fragments), seed, turn))
    else:
        ordered = shuffle(fragments, window or 1, (seed + turn * _EPOCH) & 0xFFFF_FFFF)
    return islice(ordered, options.rank, None, options.world_size)


def group(examples: Iterable[Example], batching: Batching) -> Iterator[list[Example]]:
    """Batches as soon as they are full."""
    waiting: dict[int, Example] = {}

    def list_lengths() -> Iterator[int]:
        for number, example in enumerate(examples):
            waiting[number] = example
            yield example.length

    for numbers in batch_by_length(list_lengths(), batching):
        yield [waiting.pop(number) for number in numbers]
