"""Who is to blame for batches that fail: found in finitely many steps, and nobody else."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from prefork.pool.blame import Blame, Cause
from prefork.wire.messages import Group, Request

_CAUSES = st.sampled_from([cause for cause in Cause if cause is not Cause.DEVICE])


def make(*numbers: int, worker: int = 0) -> Group:
    return tuple((worker, number) for number in numbers)


@given(
    size=st.integers(1, 12),
    guilty=st.sets(st.integers(0, 11)),
    causes=st.lists(_CAUSES, min_size=1),
    forget=st.booleans(),
)
def test_all_that_are_guilty_are_found_and_nobody_else(
    size: int, guilty: set[int], causes: list[Cause], forget: bool
) -> None:
    """forget: in between, the worker of every second request goes."""
    batch: Group = tuple((number % 2, number) for number in range(size))
    culprits = {request for request in batch if request[1] in guilty}
    blame = Blame()
    found: list[Request] = []
    done: set[Request] = set()
    todo, steps = [batch], 0
    while todo:
        steps += 1
        assert steps < 14 * 4 * size + 20
        current = todo[0]
        if culprits & set(current):
            if (one := blame.lose(current, causes[steps % len(causes)])) is not None:
                found.append(one)
        else:
            blame.clear(current)
            done |= set(current)
        if forget and steps == 3:
            blame.forget(1)
        todo = blame.groups
        left = Counter(request for group in todo for request in group)
        gone = {request for request in batch if forget and steps >= 3 and request[0] == 1}
        assert set(left.values()) <= {1}
        assert set(left) == set(batch) - set(found) - done - gone
    assert len(found) == len(set(found))
    assert set(found) <= culprits
    assert set(found) | {request for request in culprits if forget and request[0] == 1} >= culprits


@given(outside=st.integers(0, 5), size=st.integers(1, 8))
def test_a_server_that_is_killed_from_outside_says_nothing_about_its_batch(outside: int, size: int) -> None:
    blame, batch = Blame(), make(*range(size))
    for _ in range(outside):
        assert blame.lose(batch, Cause.KILL) is None
        assert blame.groups == [batch]


def test_requests_that_nobody_waits_for_leave_their_groups_and_what_is_known_of_these_stays() -> None:
    blame, batch = Blame(), make(0, 1, 2)
    blame.lose(batch, Cause.ERROR)
    blame.discard(make(1))
    assert blame.groups == [make(0, 2)]
    assert blame.knows(make(0, 2))
    blame.lose(make(0, 2), Cause.ERROR)
    assert blame.groups == [make(0), make(2)]


def test_a_batch_that_nothing_is_left_of_blames_nobody() -> None:
    blame = Blame()
    assert blame.lose((), Cause.ERROR) is None
    assert blame.groups == []


def test_a_device_that_fails_says_nothing_of_its_batch_however_often_it_does() -> None:
    blame = Blame()
    batch = make(0, 1)
    blame.lose(batch, Cause.ERROR)
    for _ in range(100):
        assert blame.lose(batch, Cause.DEVICE) is None
    assert blame.groups == [batch]
    blame.lose(batch, Cause.ERROR)  # which still counts as the second
    assert blame.groups == [make(0), make(1)]
