"""Which segments go together: nothing is lost, nothing goes twice, nothing is too large, nothing waits for ever."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.engines.base import ELEMENTS_PER_SECOND
from prefork.engines.batching import (
    ELEMENTS_PER_GIGABYTE,
    GIGABYTE,
    Batcher,
    Batching,
    BatchingStrategy,
    batch_by_length,
    batcher,
    buckets,
    create_bucket_sizes,
    datasets,
    measure_padding,
)
from prefork.engines.batching import (
    settings as batching_settings,
)

LONGEST = 30  # elements, of the small batchings here


def gigabytes(count: float) -> int:
    return round(count * GIGABYTE)


@st.composite
def small_batchings(draw: st.DrawFn, drop: bool = False) -> Batching:
    """Of segments up to 30 elements: STATIC, LENGTH, and LENGTH for so little memory that the longest go alone."""
    longest = draw(st.integers(1, LONGEST))
    options: dict[str, Any] = {
        "num_seqs_multiple_of": draw(st.sampled_from([1, 2, 3, 8])),
        "max_bucket_size": draw(st.none() | st.integers(1, 12)),
        "min_audio_len": draw(st.integers(1, longest)),
        "max_audio_len": longest,
        "drop_remainder": drop and draw(st.booleans()),
    }
    kind = draw(st.sampled_from(["static", "length", "memory"]))
    if kind == "static":
        return Batching(batch_size=draw(st.integers(1, 9)), **options)
    if kind == "length":
        return Batching(max_num_elements=draw(st.integers(longest, 200)), **options).resolve(1)[0]
    elements = draw(st.integers(1, 40))
    return Batching(**options).resolve(elements * GIGABYTE // ELEMENTS_PER_GIGABYTE + 1)[0]


def pad(lengths: Sequence[int]) -> int:
    return len(lengths) * max(lengths)


def assert_fits(batch: Sequence[int], batching: Batching, factor: float = 1.0) -> None:
    assert batch
    if len(batch) == 1:
        return
    if batching.batch_size is not None:
        assert len(batch) <= max(1, int(batching.batch_size * factor))
        return
    assert batching.max_num_elements is not None
    assert pad(batch) <= int(batching.max_num_elements * factor)
    assert batching.max_bucket_size is None or len(batch) <= batching.max_bucket_size


# -- create_bucket_sizes ---------------------------------------------------------------------------------------------


def test_the_examples_in_the_docstrings_are_true() -> None:
    results = [doctest.testmod(module) for module in (batcher, buckets, datasets, batching_settings)]
    assert sum(result.attempted for result in results) >= 6
    assert sum(result.failed for result in results) == 0


def test_there_is_a_bucket_for_every_batch_size() -> None:
    assert create_bucket_sizes(max_num_elements=24, max_seq_len=12) == [
        (24, 1),
        (12, 2),
        (8, 3),
        (6, 4),
        (4, 6),
        (3, 8),
        (2, 12),
    ]


def test_batch_sizes_above_the_multiple_are_lowered_to_it_and_the_others_stay() -> None:
    sizes = [size for size, _ in create_bucket_sizes(max_num_elements=100, max_seq_len=25, num_seqs_multiple_of=8)]
    assert sizes[0] == 96
    assert [size for size in sizes if size <= 8] == [8, 8, 8, 8, 8, 8, 7, 6, 5, 4]
    assert all(size % 8 == 0 for size in sizes if size > 8)


def test_there_is_no_bucket_for_what_is_shorter_than_the_shortest() -> None:
    assert create_bucket_sizes(max_num_elements=24, max_seq_len=12, min_seq_len=5) == [(4, 6), (3, 8), (2, 12)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_seq_len": 13}, ["max_seq_len", "less than or equal to `max_num_elements` (12)", "is 13"]),
        ({"min_seq_len": 0}, ["min_seq_len", "greater than or equal to 1", "is 0"]),
        ({"min_seq_len": 7}, ["min_seq_len", "less than or equal to `max_seq_len` (6)", "is 7"]),
        ({"num_seqs_multiple_of": 0}, ["num_seqs_multiple_of", "greater than or equal to 1", "is 0"]),
        ({"max_seq_len": 5}, ["max_num_elements", "multiple of `max_seq_len` (5)", "is 12"]),
    ],
)
def test_a_bad_argument_is_refused_with_its_name_the_rule_and_its_value(
    options: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(ValueError) as refused:
        create_bucket_sizes(**{"max_num_elements": 12, "max_seq_len": 6, **options})
    assert all(word in str(refused.value) for word in words), refused.value


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_no_bucket_exceeds_the_elements_and_each_holds_as_many_as_fit(
    count: int, longest: int, data: st.DataObject
) -> None:
    shortest = data.draw(st.integers(1, longest))
    buckets = create_bucket_sizes(max_num_elements=count * longest, max_seq_len=longest, min_seq_len=shortest)
    assert buckets[-1] == (count, longest)
    assert [length for _, length in buckets] == sorted({length for _, length in buckets})
    for size, length in buckets:
        assert size * length <= count * longest < (size + 1) * length
        assert length >= shortest


# -- Batching --------------------------------------------------------------------------------------------------------


def test_a_batch_size_makes_it_static_and_length_is_the_default() -> None:
    assert Batching(batch_size=4).strategy is BatchingStrategy.STATIC
    assert Batching().strategy is BatchingStrategy.LENGTH
    assert Batching(max_num_elements=1).strategy is BatchingStrategy.LENGTH
    assert BatchingStrategy("length") is BatchingStrategy.LENGTH


def test_options_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Batching().batch_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "name",
    ["batch_size", "max_num_elements", "num_seqs_multiple_of", "max_bucket_size", "min_audio_len", "max_audio_len"],
)
@pytest.mark.parametrize("value", [0, -8])
def test_an_option_below_one_is_refused_by_its_name(name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"`(min_audio_len|{name})`.*{value}"):
        Batching(**options)


def test_a_segment_that_fits_no_batch_is_refused_with_both_options_the_rule_and_the_remedy() -> None:
    with pytest.raises(ValueError) as refused:
        Batching(max_num_elements=1_000, max_audio_len=1_001)
    text = str(refused.value)
    assert "`max_audio_len` must be less than or equal to `max_num_elements` (1000), but is 1001" in text
    assert "lower `max_audio_len`" in text
    assert "raise `max_num_elements`" in text


def test_a_batch_size_and_a_number_of_elements_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=r"`batch_size` \(8\) and `max_num_elements` \(9000000\) cannot be combined"):
        Batching(batch_size=8, max_num_elements=9_000_000)


def test_the_shortest_cannot_be_longer_than_the_longest() -> None:
    with pytest.raises(ValueError, match=r"`min_audio_len` must be less than or equal to `max_audio_len` \(10\)"):
        Batching(min_audio_len=11, max_audio_len=10)


def test_by_default_nothing_is_too_long_and_nothing_is_rounded() -> None:
    resolved, warnings = Batching().resolve(gigabytes(80))
    assert resolved.max_num_elements == 3_200_000
    assert warnings == []
    batcher = Batcher[str](resolved, window=10**9)
    batcher.add("an hour", 3600 * ELEMENTS_PER_SECOND)
    batcher.add("a second", ELEMENTS_PER_SECOND)
    assert [batcher.pop(flush=True), batcher.pop(flush=True)] == [["an hour"], ["a second"]]


def test_elements_are_chosen_from_memory_and_rounded_down_with_a_warning() -> None:
    resolved, warnings = Batching(max_audio_len=900_000).resolve(gigabytes(80))
    assert resolved.max_num_elements == 2_700_000
    assert resolved.memory_bytes == gigabytes(80)
    assert len(warnings) == 1
    assert all(word in warnings[0] for word in ("rounded to 2700000", "`max_audio_len` (900000)", "from 3200000"))


def test_a_gigabyte_is_worth_forty_thousand_elements() -> None:
    assert Batching(max_audio_len=1).resolve(2**30)[0].max_num_elements == 40_000


def test_elements_that_are_a_multiple_already_are_no_reason_to_warn() -> None:
    assert Batching(max_audio_len=800_000).resolve(gigabytes(80))[1] == []


def test_given_elements_are_rounded_down_with_a_warning_whatever_memory_there_is() -> None:
    resolved, warnings = Batching(max_num_elements=2_560_000, max_audio_len=480_000).resolve(gigabytes(4))
    assert resolved.max_num_elements == 2_400_000
    assert "rounded to 2400000" in warnings[0]


@pytest.mark.parametrize("memory", [1, gigabytes(0.1), gigabytes(8), gigabytes(24), gigabytes(48)])
def test_a_small_gpu_works_with_the_defaults_and_its_longest_segments_go_alone(memory: int) -> None:
    long = 130 * ELEMENTS_PER_SECOND
    resolved, warnings = Batching(max_audio_len=long).resolve(memory)
    assert resolved.max_audio_len == long
    assert resolved.max_num_elements is not None
    assert 1 <= resolved.max_num_elements < long
    assert "batches of their own" in warnings[0]
    batcher = Batcher[str](resolved, window=10**9)
    batcher.add("long", long)
    batcher.add("as long", long)
    assert [batcher.pop(), batcher.pop()] == [["long"], ["as long"]]


def test_what_was_resolved_stays_as_it_is() -> None:
    for batching in (Batching(), Batching(batch_size=3), Batching(max_num_elements=5_000_000)):
        resolved, _ = batching.resolve(gigabytes(24))
        assert resolved.resolve(gigabytes(80)) == (resolved, [])


def test_no_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="`memory_bytes` must be greater than or equal to 1, but is 0"):
        Batching().resolve(0)


def test_jobs_cannot_drop_what_they_would_lose() -> None:
    batching = Batching(batch_size=2, drop_remainder=True)
    for refuse in (batching.check_for_jobs, lambda: Batcher[int](batching, window=1)):
        with pytest.raises(ValueError, match=r"`drop_remainder` is for data sets.*never be written"):
            refuse()
    Batching(batch_size=2).check_for_jobs()


# -- Batcher ---------------------------------------------------------------------------------------------------------


def make(window: int = 10_000, **options: Any) -> Batcher[str]:
    return Batcher[str](Batching(**{"max_audio_len": LONGEST, "num_seqs_multiple_of": 1, **options}), window)


def fill(batcher: Batcher[str], *lengths: int) -> None:
    for index, length in enumerate(lengths):
        batcher.add("abcdefghijklmnopqrstuvwxyz"[index], length)


def drain(batcher: Batcher[str]) -> list[str]:
    batches = []
    while batch := batcher.pop(flush=True):
        batches.append("".join(batch))
    return batches


def test_static_batches_are_in_order_of_arrival() -> None:
    batcher = make(batch_size=2)
    fill(batcher, 30, 1, 2)
    assert batcher.pop() == ["a", "b"]
    assert batcher.pop() == []
    assert batcher.pop(flush=True) == ["c"]
    assert batcher.pop(flush=True) == []


def test_a_full_bucket_goes_before_older_segments_whose_batch_is_not_full() -> None:
    batcher = make(max_num_elements=60)
    fill(batcher, 10, 30, 30)
    assert batcher.pop() == ["b", "c"]
    assert batcher.pop() == []
    assert len(batcher) == 1


def test_of_the_full_buckets_that_with_the_oldest_segment_goes_first() -> None:
    batcher = make(max_num_elements=60)
    fill(batcher, 20, 30, 30, 20, 20)
    assert batcher.pop() == ["a", "d", "e"]
    assert batcher.pop() == ["b", "c"]


def test_neighbouring_buckets_fill_a_batch_together() -> None:
    batcher = make(max_num_elements=60)
    fill(batcher, 20, 19, 15)
    assert batcher.pop() == ["a", "b", "c"]


def test_a_flushed_batch_is_filled_with_what_pads_least() -> None:
    batcher = make(max_num_elements=60)
    fill(batcher, 10, 29, 2, 11, 2)
    assert drain(batcher) == ["ad", "b", "ce"]


def test_what_waits_is_flushed_when_the_window_is_full() -> None:
    batcher = make(window=35, max_num_elements=60)
    fill(batcher, 5, 29)
    assert not batcher.is_full
    assert batcher.pop() == []
    batcher.add("c", 1)
    assert batcher.is_full
    assert batcher.num_elements == 35
    assert batcher.pop() == ["a"]
    assert not batcher.is_full


def test_a_flush_takes_the_oldest_segment_even_where_others_fill_a_bucket() -> None:
    batcher = make(max_num_elements=60)
    fill(batcher, 10, 30, 30)
    assert batcher.pop(flush=True) == ["a"]
    assert batcher.pop() == ["b", "c"]


def test_a_batch_that_is_not_full_has_a_multiple_too_and_the_rest_waits_for_others() -> None:
    batcher = make(max_num_elements=120, num_seqs_multiple_of=4)
    fill(batcher, 10, 9, 10, 10, 10, 10, 30)
    assert drain(batcher) == ["acde", "bf", "g"]


def test_batch_sizes_are_multiples_where_more_fit_unless_nothing_else_waits() -> None:
    batcher = make(max_num_elements=60, num_seqs_multiple_of=4)
    fill(batcher, *[10] * 6, 30)
    assert drain(batcher) == ["abcd", "ef", "g"]
    fill(batcher, *[12] * 5)
    assert drain(batcher) == ["abcd", "e"]  # five fit, but the bucket has four
    fill(batcher, *[5] * 7)
    assert drain(batcher) == ["abcdefg"]


def test_what_is_discarded_never_comes() -> None:
    batcher = make(batch_size=2)
    fill(batcher, 3, 4, 5)
    batcher.discard("a")
    batcher.discard("unknown")
    assert len(batcher) == 2
    assert batcher.num_elements == 9
    assert batcher.oldest == "b"
    assert batcher.pop() == ["b", "c"]
    assert batcher.oldest is None
    batcher.add("a", 3)
    assert batcher.pop(flush=True) == ["a"]


def test_a_segment_that_is_too_long_is_refused_with_its_length_the_limit_and_the_remedy() -> None:
    batcher = Batcher[str](Batching(batch_size=2, max_audio_len=130 * ELEMENTS_PER_SECOND), window=1)
    with pytest.raises(ValueError) as refused:
        batcher.add("a", 131 * ELEMENTS_PER_SECOND)
    text = str(refused.value)
    assert "131.0 s" in text
    assert "`max_audio_len` (2080000, 130.0 s)" in text
    assert "split it, or raise" in text
    assert len(batcher) == 0


def test_a_segment_that_is_shorter_than_the_shortest_is_no_less_a_segment() -> None:
    batcher = make(max_num_elements=60, min_audio_len=10)
    fill(batcher, 3, 0)
    assert drain(batcher) == ["a", "b"]


def test_a_key_cannot_wait_twice() -> None:
    batcher = make(batch_size=2)
    batcher.add("a", 1)
    with pytest.raises(ValueError, match="'a' waits already"):
        batcher.add("a", 1)
    with pytest.raises(ValueError, match="`num_elements` must be greater than or equal to 0, but is -1"):
        batcher.add("b", -1)
    assert len(batcher) == 1


def test_a_batcher_needs_to_know_the_memory_and_a_window() -> None:
    with pytest.raises(ValueError, match=r"`max_num_elements`.*`resolve`"):
        Batcher[str](Batching(), window=1)
    with pytest.raises(ValueError, match="`window` must be greater than or equal to 1, but is 0"):
        Batcher[str](Batching(batch_size=1), window=0)


def test_a_limit_halves_batches_and_is_not_raised_again() -> None:
    batcher = make(max_num_elements=120)
    fill(batcher, *[30] * 8)
    assert batcher.pop() == ["a", "b", "c", "d"]
    for factor in (0.5, 0.5, 1.0):
        batcher.limit(factor)
    assert batcher.pop() == ["e", "f"]
    batcher.limit(0.01)  # 1 element
    assert drain(batcher) == ["g", "h"]


def test_a_limit_leaves_static_batches_one_segment() -> None:
    batcher = make(batch_size=5)
    fill(batcher, *[1] * 6)
    batcher.limit(0.5)
    assert batcher.pop() == ["a", "b"]
    batcher.limit(0.1)
    assert drain(batcher) == ["c", "d", "e", "f"]


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.5, float("nan")])
def test_a_limit_that_is_no_share_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="`factor` must be greater than 0 and at most 1"):
        make(batch_size=5).limit(factor)


def test_batches_of_at_most_so_many_segments_if_a_bucket_may_hold_no_more() -> None:
    batcher = make(max_num_elements=60, max_bucket_size=3)
    fill(batcher, *[1] * 7)
    assert drain(batcher) == ["abc", "def", "g"]
    batcher = make(max_num_elements=90, max_bucket_size=2)  # no bucket holds so few
    fill(batcher, 1, 1, 1)
    assert drain(batcher) == ["ab", "c"]


Call = tuple[str, int]


def calls(longest: int = LONGEST) -> st.SearchStrategy[list[Call]]:
    add = st.tuples(st.just("add"), st.integers(0, longest))
    other = st.tuples(st.sampled_from(["pop", "flush", "discard", "limit"]), st.integers(0, 40))
    return st.lists(add | add | other, max_size=60)


@settings(max_examples=300, deadline=None)
@given(small_batchings(), st.integers(1, 200), calls())
def test_whatever_comes_goes_once_and_fits(batching: Batching, window: int, script: list[Call]) -> None:
    batcher = Batcher[int](batching, window)
    lengths: dict[int, int] = {}
    waiting: list[int] = []
    served: dict[int, int] = {}  # key -> elements that had gone when it came
    gone, factor, key = 0, 1.0, 0

    def take(batch: list[int], flush: bool) -> int:
        if not batch:
            assert not waiting or not (flush or batcher.is_full or gone - served[waiting[0]] >= window)
            return gone
        assert batch == sorted(batch)
        assert set(batch) <= set(waiting)
        assert_fits([lengths[k] for k in batch], batching, factor)
        multiple = batching.num_seqs_multiple_of
        if batching.batch_size is None and batching.max_bucket_size is None and len(batch) > multiple:
            assert len(batch) % multiple == 0 or len(batch) == len(waiting)
        if flush or gone - served[waiting[0]] >= window:
            assert batch[0] == waiting[0]
        for k in batch:
            waiting.remove(k)
        return gone + sum(lengths[k] for k in batch)

    for name, value in script:
        if name == "add" and value > batching.longest:
            with pytest.raises(ValueError):
                batcher.add(key, value)
        elif name == "add":
            lengths[key], served[key] = value, gone
            batcher.add(key, value)
            waiting.append(key)
            key += 1
        elif name == "discard":
            batcher.discard(value)
            waiting = [k for k in waiting if k != value]
        elif name == "limit":
            new = (value + 1) / 41
            batcher.limit(new)
            factor = min(factor, new)
        else:
            gone = take(batcher.pop(flush=name == "flush"), name == "flush")
        assert len(batcher) == len(waiting)
        assert batcher.num_elements == sum(lengths[k] for k in waiting)
        assert batcher.oldest == (waiting[0] if waiting else None)
        assert batcher.is_full == (batcher.num_elements >= window)
    while waiting:
        gone = take(batcher.pop(flush=True), True)
    assert batcher.pop(flush=True) == []


@given(small_batchings(), calls())
def test_the_same_calls_give_the_same_batches(batching: Batching, script: list[Call]) -> None:
    def play(keys: Sequence[Any]) -> list[Any]:
        batcher = Batcher[Any](batching, window=90)
        batches = []
        for key, (name, value) in zip(keys, script, strict=True):
            if name == "add" and value <= batching.longest:
                batcher.add(key, value)
            batches.append([keys.index(k) for k in batcher.pop(flush=name == "flush")])
        return batches

    # What the keys are, and how they hash, is of no account.
    assert play(list(range(len(script)))) == play([f"key {i}" for i in range(len(script))])


@settings(deadline=None)
@given(st.integers(0, LONGEST), st.integers(1, 300))
def test_none_waits_for_ever_where_full_batches_keep_coming(odd: int, window: int) -> None:
    batcher = Batcher[int](Batching(max_num_elements=60, num_seqs_multiple_of=1, max_audio_len=LONGEST), window)
    batcher.add(-1, odd)
    length = 10 if odd > 20 else 30
    gone, key = 0, 0
    while gone < window:
        for _ in range(60 // length):
            batcher.add(key, length)
            key += 1
        batch = batcher.pop()
        assert batch
        if -1 in batch:
            return
        gone += length * len(batch)
    for _ in range(60 // length):
        batcher.add(key, length)
        key += 1
    assert -1 in batcher.pop()


# -- data sets -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(small_batchings(drop=True), st.lists(st.integers(0, LONGEST + 5), max_size=80))
def test_a_data_set_is_batched_once_over_without_what_is_too_short_or_too_long(
    batching: Batching, lengths: list[int]
) -> None:
    batches = list(batch_by_length(lengths, batching))
    indices = [index for batch in batches for index in batch]
    kept = {i for i, n in enumerate(lengths) if batching.min_audio_len <= n <= batching.longest}
    assert len(indices) == len(set(indices))
    assert set(indices) <= kept
    assert batching.drop_remainder or set(indices) == kept
    for batch in batches:
        assert_fits([lengths[index] for index in batch], batching)


def test_what_fills_no_batch_at_the_end_is_dropped_on_demand() -> None:
    lengths = [30, 30, 20, 10, 10]
    kept = Batching(max_num_elements=60, max_audio_len=30, num_seqs_multiple_of=1)
    dropped = Batching(max_num_elements=60, max_audio_len=30, num_seqs_multiple_of=1, drop_remainder=True)
    assert list(batch_by_length(lengths, kept)) == [[0, 1], [2, 4, 3]]
    assert list(batch_by_length([*lengths, 5], kept)) == [[0, 1], [2, 4, 3], [5]]
    assert list(batch_by_length([*lengths, 5], dropped)) == [[0, 1], [2, 4, 3]]
    assert list(batch_by_length([1, 2, 3], Batching(batch_size=2, drop_remainder=True))) == [[0, 1]]


def test_a_data_set_needs_to_know_the_memory_too() -> None:
    with pytest.raises(ValueError, match="`resolve`"):
        list(batch_by_length([1], Batching()))


# -- padding ---------------------------------------------------------------------------------------------------------


def test_padding_is_the_share_of_elements_that_are_none() -> None:
    assert measure_padding([]) == 0
    assert measure_padding([[], [0]]) == 0
    assert measure_padding([[7, 7], [3]]) == 0
    assert measure_padding([[1, 3, 2], [4]]) == pytest.approx(3 / 13)


def test_batches_by_length_pad_less_than_static_ones_of_the_same_memory() -> None:
    lengths = [1 + (index * 37) % LONGEST for index in range(600)]
    paddings = []
    for batching in (
        Batching(batch_size=8, max_audio_len=LONGEST),
        Batching(max_num_elements=8 * LONGEST, max_audio_len=LONGEST),
    ):
        batcher, batches = Batcher[int](batching, window=4 * 8 * LONGEST), []
        for index, length in enumerate(lengths):
            batcher.add(index, length)
            while batcher.is_full:
                batches.append(batcher.pop())
        while batch := batcher.pop(flush=True):
            batches.append(batch)
        assert sorted(index for batch in batches for index in batch) == list(range(600))
        paddings.append((measure_padding([[lengths[i] for i in batch] for batch in batches]), len(batches)))
    static, by_length = paddings
    assert by_length[0] < static[0] / 3
    assert by_length[1] < static[1]


def test_batching_needs_no_torch() -> None:
    code = "import sys, prefork.engines.batching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
