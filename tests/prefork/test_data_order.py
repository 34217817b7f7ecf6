"""The order of batches: as fairseq2 and omnilingual-asr have it, number for number."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.data.options import PipelineOptions
from prefork.data.order import Example, group
from prefork.data.shuffling import find_weights, permute, sample, shuffle
from prefork.engines.batching import Batching, create_bucket_sizes

# Computed by tests/data/fairseq2/make_golden.py with fairseq2 0.8.1 and omnilingual-asr 81f51e2.
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/fairseq2/golden.json").read_text())
LENGTHS: list[int] = GOLDEN["lengths"]


@pytest.mark.parametrize("case", GOLDEN["shuffle"], ids=lambda case: f"{case['window']}-{case['seed']}-{case['count']}")
def test_shuffles_are_fairseq2s(case: dict[str, Any]) -> None:
    assert list(shuffle(range(case["count"]), case["window"], case["seed"])) == case["order"]


def test_shuffle_takes_no_more_than_its_window_ahead() -> None:
    source = iter(range(100))
    assert len(list(islice(shuffle(source, 10, 1), 5))) == 5
    assert next(source) <= 10 + 5


@pytest.mark.parametrize("case", GOLDEN["sample"], ids=lambda case: f"{case['weights']}-{case['seed']}")
def test_draws_among_partitions_are_fairseq2s(case: dict[str, Any]) -> None:
    sources = [lambda _, i=i, n=n: iter([100 * i + j for j in range(n)]) for i, n in enumerate(case["counts"])]
    assert list(sample(sources, case["weights"], case["seed"])) == case["order"]


def test_bucket_sizes_are_fairseq2s() -> None:
    for case in GOLDEN["buckets"]:
        most, longest, least, multiple = case["arguments"]
        found = create_bucket_sizes(
            max_num_elements=most, max_seq_len=longest, min_seq_len=least, num_seqs_multiple_of=multiple
        )
        assert [list(bucket) for bucket in found] == case["buckets"]


def _list_ids(examples: list[Example], batching: Batching) -> list[list[int]]:
    return [[example.place for example in batch] for batch in group(examples, batching)]


def test_batches_of_2000_lengths_are_omnilingual_asrs() -> None:
    *cases, static = GOLDEN["batches"]
    for case in cases:
        most, longest, multiple, largest, drop = case["arguments"]
        options = PipelineOptions(
            max_num_elements=most,
            max_audio_len=longest,
            num_seqs_multiple_of=multiple,
            max_bucket_size=largest,
            drop_remainder=drop,
        )
        examples = [Example(0, i, n) for i, n in enumerate(LENGTHS) if n <= longest]
        assert _list_ids(examples, options.make_batching()) == case["batches"]
    options = PipelineOptions(batching_strategy="STATIC", batch_size=8, drop_remainder=True)
    assert _list_ids([Example(0, i, 1) for i in range(53)], options.make_batching()) == static["batches"]


def test_the_whole_order_is_omnilingual_asrs() -> None:
    options = PipelineOptions(example_shuffle_window=500, batch_shuffle_window=20)
    examples = shuffle([Example(0, i, n) for i, n in enumerate(LENGTHS) if n <= 800_000], 500, options.seed)
    batches = shuffle(group(examples, options.make_batching()), 20, options.seed + 1)
    assert [[example.place for example in batch] for batch in batches] == GOLDEN["order"]


def test_weights_are_omnilingual_asrs() -> None:
    for case in GOLDEN["weights"]:
        rows = [line.split("\t") for line in case["table"].splitlines()[1:]]
        hours = {(corpus, language): float(value) for corpus, language, value in rows}
        found = find_weights(hours, case["beta_corpus"], case["beta_language"])
        assert found == {(c, language): pytest.approx(w, rel=1e-12) for c, language, w in case["weights"]}


def test_permutations_of_fragments_are_fairseq2s() -> None:
    for case in GOLDEN["permutations"]:
        assert [permute(case["count"], case["seed"], turn) for turn in range(3)] == case["turns"]


@given(st.integers(0, 60), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_shuffling_loses_and_repeats_nothing(count: int, window: int, seed: int) -> None:
    found = list(shuffle(range(count), window, seed))
    assert sorted(found) == list(range(count))


@given(st.lists(st.integers(1, 400), max_size=80), st.integers(400, 4000), st.integers(1, 9))
def test_every_example_is_in_one_batch_that_is_not_too_large(lengths: list[int], most: int, multiple: int) -> None:
    options = PipelineOptions(max_audio_len=400, max_num_elements=most, num_seqs_multiple_of=multiple)
    batches = list(group([Example(0, i, n) for i, n in enumerate(lengths)], options.make_batching()))
    assert sorted(example.place for batch in batches for example in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(example.length for example in batch) <= most for batch in batches)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"batching_strategy": "BOTH"}, "`batching_strategy` must be LENGTH or STATIC, but is 'BOTH' instead"),
        ({"world_size": 2, "rank": 2}, "`rank` must be less than `world_size` \\(2\\), but is 2 instead"),
        ({"example_shuffle_window": -1}, "`example_shuffle_window` must be greater than or equal to 0"),
        ({"max_audio_len": 4_000_000}, "`max_audio_len` must be less than or equal to `max_num_elements`"),
        ({"beta_corpus": 0.5}, "must be given together"),
        ({"fraction_of_files": 2.0}, "`fraction_of_files` must be greater than 0 and at most 1"),
    ],
)
def test_options_that_cannot_be(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PipelineOptions(**values)
