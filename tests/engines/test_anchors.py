"""Anchors between sequences with errors."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np

from prefork.engines.alignment.anchors import find_anchors


def test_a_shared_stretch_is_found_among_noise() -> None:
    chance = np.random.default_rng(1)
    shared = chance.integers(0, 26, 60)
    left = np.concatenate([chance.integers(0, 26, 300), shared, chance.integers(0, 26, 100)])
    right = np.concatenate([chance.integers(0, 26, 900), shared, chance.integers(0, 26, 50)])
    (chain,) = find_anchors(left, right, 5, 80, 16.0)
    assert (chain.left[0], chain.right[0]) == (300, 900)
    assert {b - a for a, b in zip(chain.left, chain.right, strict=True)} == {600}


def test_chains_go_forward_in_both_sequences() -> None:
    chance = np.random.default_rng(2)
    parts = [chance.integers(0, 26, 40) for _ in range(4)]
    swapped = np.concatenate([parts[i] for i in (0, 2, 1, 3)])
    chains = find_anchors(np.concatenate(parts), swapped, 5, 20, 16.0)
    assert len(chains) == 3  # one of the two that changed places is given up
    for before, after in pairwise(chains):
        assert before.left[-1] < after.left[0] and before.right[-1] < after.right[0]


def test_noise_and_emptiness_have_no_anchors() -> None:
    chance = np.random.default_rng(3)
    noise = [chance.integers(0, 26, 3000) for _ in range(2)]
    assert find_anchors(noise[0], noise[1], 5, 80, 16.0) == []
    assert find_anchors(np.zeros(0, np.int64), noise[0], 5, 80, 16.0) == []
    assert find_anchors(np.zeros(500, np.int64), np.zeros(500, np.int64), 5, 80, 16.0) == []


def test_four_times_the_length_takes_not_much_more_than_four_times_as_long() -> None:
    took = []
    for length in (10_000, 40_000):
        text = np.random.default_rng(4).integers(0, 26, length)
        begin = time.process_time()
        assert find_anchors(text, text, 5, 80, 16.0)
        took.append(time.process_time() - begin)
    assert took[1] < 10 * took[0]
