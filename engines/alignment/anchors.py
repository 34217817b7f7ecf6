"""Anchors: where two long sequences, one of them full of errors, say the same, found in near linear time.

Seeds are n-grams that are rare in both; those that lie near one another on a diagonal are chained, as in Li 2018
(minimap2), https://doi.org/10.1093/bioinformatics/bty191, section 2.1; of the chains, the heaviest set that goes
forward in both sequences is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Integers = np.ndarray[Any, np.dtype[np.int64]]

_RARE = 8  # times that an n-gram may occur in each of the sequences
_REACH = 48  # earlier seeds that one is chained to at most
_DRIFT = 0.5  # what a step off the diagonal costs, in matched items


@dataclass(frozen=True, slots=True)
class Chain:
    """Seeds of one diagonal. left, right: the position of each in the two sequences, rising. weight: matched items,
    less what the steps off the diagonal cost."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    weight: float


def find_anchors(left: Integers, right: Integers, size: int, gap: int, least: float) -> list[Chain]:
    """The heaviest chains that follow one another in both sequences, in order.

    left, right: (n,) (m,) items as numbers from 0. size: items of an n-gram. gap: items that two seeds of a chain may
    be apart. least: the weight of a chain that can be trusted.
    """
    chains = [chain for chain in _chain_seeds(*_find_seeds(left, right, size), size, gap) if chain.weight >= least]
    return _choose(chains)


def _find_seeds(left: Integers, right: Integers, size: int) -> tuple[Integers, Integers]:
    """Positions of the n-grams that both sequences have and that are rare in both, by their place in the right one."""
    nothing = np.zeros(0, np.int64)
    if min(len(left), len(right)) < size:
        return nothing, nothing
    _, codes = np.unique(np.concatenate([left, right]), return_inverse=True)
    grams = np.concatenate([_list_grams(codes[: len(left)], size), _list_grams(codes[len(left) :], size)])
    _, names = np.unique(grams, axis=0, return_inverse=True)
    names = names.reshape(-1)
    split = len(left) - size + 1
    ours, theirs = names[:split], names[split:]
    count = int(names.max()) + 1
    in_left, in_right = np.bincount(ours, minlength=count), np.bincount(theirs, minlength=count)
    good = (in_left > 0) & (in_right > 0) & (in_left <= _RARE) & (in_right <= _RARE)
    order = np.argsort(ours, kind="stable")
    first = np.searchsorted(ours[order], np.arange(count))
    positions = np.flatnonzero(good[theirs])
    times = in_left[theirs[positions]]
    seeds_right = np.repeat(positions, times)
    steps = np.arange(len(seeds_right)) - np.repeat(np.cumsum(times) - times, times)
    seeds_left = order[np.repeat(first[theirs[positions]], times) + steps]
    return seeds_left.astype(np.int64), seeds_right.astype(np.int64)


def _list_grams(codes: Integers, size: int) -> Integers:
    return np.lib.stride_tricks.sliding_window_view(codes, size)


def _chain_seeds(left: Integers, right: Integers, size: int, gap: int) -> list[Chain]:
    """Every seed belongs to one chain, that of its best predecessor, unless another seed took that before."""
    weights = np.full(len(left), float(size))
    before = np.full(len(left), -1)
    for k in range(1, len(left)):
        low = max(0, k - _REACH)
        steps_left, steps_right = left[k] - left[low:k], right[k] - right[low:k]
        shorter = np.minimum(steps_left, steps_right)
        drift = np.abs(steps_left - steps_right)
        gains = weights[low:k] + np.minimum(shorter, size) - _DRIFT * drift
        gains[(shorter <= 0) | (steps_right > gap) | (steps_left > gap)] = -1.0
        best = int(gains.argmax())
        if gains[best] > size:
            weights[k], before[k] = gains[best], low + best
    chains, used = [], np.zeros(len(left), bool)
    for end in np.argsort(-weights, kind="stable"):
        seeds, k = [], int(end)
        while k >= 0 and not used[k]:
            used[k] = True
            seeds.append(k)
            k = int(before[k])
        if seeds:
            weight = float(weights[end] - (weights[k] if k >= 0 else 0.0))
            seeds.reverse()
            chains.append(Chain(tuple(left[seeds].tolist()), tuple(right[seeds].tolist()), weight))
    return chains


def _choose(chains: Sequence[Chain]) -> list[Chain]:
    """The heaviest chains of which each begins after the one before it has ended, in both sequences: O(n log n)."""
    if not chains:
        return []
    places = {end: rank for rank, end in enumerate(sorted({chain.left[-1] for chain in chains}), 1)}
    ends = np.array(sorted(places), np.int64)
    tree: list[tuple[float, int]] = [(0.0, -1)] * (len(places) + 1)
    totals, before = [0.0] * len(chains), [-1] * len(chains)
    starting = sorted(range(len(chains)), key=lambda k: chains[k].right[0])
    ending = sorted(range(len(chains)), key=lambda k: chains[k].right[-1])
    done = 0
    for k in starting:
        while done < len(chains) and chains[ending[done]].right[-1] < chains[k].right[0]:
            entry = ending[done]
            _raise(tree, places[chains[entry].left[-1]], (totals[entry], entry))
            done += 1
        most, before[k] = _look_up(tree, int(np.searchsorted(ends, chains[k].left[0])))
        totals[k] = most + chains[k].weight
    k = max(range(len(chains)), key=totals.__getitem__)
    chosen = []
    while k >= 0:
        chosen.append(chains[k])
        k = before[k]
    return chosen[::-1]


def _raise(tree: list[tuple[float, int]], place: int, value: tuple[float, int]) -> None:
    """Fenwick's tree of maxima: `place` counts from 1."""
    while place < len(tree):
        if value[0] > tree[place][0]:
            tree[place] = value
        place += place & -place


def _look_up(tree: Sequence[tuple[float, int]], place: int) -> tuple[float, int]:
    """The largest value at the places 1 to `place`."""
    best = (0.0, -1)
    while place > 0:
        if tree[place][0] > best[0]:
            best = tree[place]
        place -= place & -place
    return best
