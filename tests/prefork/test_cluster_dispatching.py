"""Who gets what, in random schedules: every unit ends once, and nothing costs more machines than it may."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.cluster.dispatching import MOST_LOSSES, Dispatch, MachineState, Unit


def _join(dispatch: Dispatch, address: str, room: int = 2) -> None:
    dispatch.join(address, address)
    dispatch.make_ready(address, room)


def _make(count: int, **values: Any) -> list[Unit]:
    return [Unit((number,), 1.0, number, **values) for number in range(count)]


def _given(dispatch: Dispatch, now: float = 0.0) -> dict[int, str]:
    return {unit.payload: machine.address for machine, unit in dispatch.assign(now)}


def test_machines_share_what_there_is_and_none_hoards() -> None:
    dispatch = Dispatch()
    for address in "ab":
        _join(dispatch, address, room=4)
    for unit in _make(4):
        dispatch.add(unit)
    assert _given(dispatch) == {0: "a", 1: "b", 2: "a", 3: "b"}


def test_a_machine_that_loads_or_was_refused_gets_nothing() -> None:
    dispatch = Dispatch()
    dispatch.join("a", "a")
    _join(dispatch, "b")
    dispatch.refuse("b", "another version")
    for unit in _make(2):
        dispatch.add(unit)
    assert _given(dispatch) == {}
    dispatch.make_ready("b", 2)
    assert _given(dispatch) == {}
    dispatch.make_ready("a", 2)
    assert _given(dispatch) == {0: "a", 1: "a"}


def test_what_a_lost_machine_had_goes_to_others_one_suspect_at_a_time() -> None:
    dispatch = Dispatch()
    _join(dispatch, "a")
    for unit in _make(5):
        dispatch.add(unit)
    assert _given(dispatch) == {0: "a", 1: "a"}
    assert dispatch.leave("a", in_order=False) == []
    _join(dispatch, "b")
    assert _given(dispatch) == {0: "b", 2: "b"}
    (ended,) = dispatch.leave("b", in_order=False)
    assert (ended.payload, ended.losses) == (0, ["a", "b"])
    _join(dispatch, "c")
    assert _given(dispatch) == {1: "c", 3: "c"}


def test_a_machine_that_leaves_in_order_blames_nothing() -> None:
    dispatch = Dispatch()
    units = _make(2)
    for unit in units:
        dispatch.add(unit)
    for address in "abc":
        _join(dispatch, address)
        assert set(_given(dispatch)) == {0, 1}
        assert dispatch.leave(address, in_order=True) == []
    assert not any(unit.losses for unit in units)


def test_what_fails_for_the_machine_s_fault_is_tried_on_another_and_no_third() -> None:
    dispatch = Dispatch()
    (unit,) = _make(1)
    dispatch.add(unit)
    for address in "abc":
        _join(dispatch, address)
    dispatch.assign(0.0)
    (first,) = unit.machines
    assert not dispatch.fail(unit, first)
    dispatch.assign(0.0)
    (second,) = unit.machines
    assert second != first
    assert dispatch.fail(unit, second)


def test_what_fails_on_the_only_machine_has_failed() -> None:
    dispatch = Dispatch()
    (unit,) = _make(1)
    dispatch.add(unit)
    _join(dispatch, "a")
    dispatch.assign(0.0)
    assert dispatch.fail(unit, "a")


def test_a_machine_that_does_not_see_the_files_gets_what_can_be_sent() -> None:
    dispatch = Dispatch()
    _join(dispatch, "a")
    dispatch.machines["a"].blind = True
    large, small = Unit((0,), 9.0, 0, sendable=False), Unit((1,), 1.0, 1)
    dispatch.add(large)
    dispatch.add(small)
    assert _given(dispatch) == {1: "a"}
    assert dispatch.take_hopeless() == []
    assert dispatch.finish(small, "a", 1.0)
    assert dispatch.take_hopeless() == [large]
    assert dispatch.list_left() == []


def test_what_a_slow_machine_has_is_done_by_another_too_and_counts_once() -> None:
    dispatch = Dispatch()
    first, second = _make(2)
    for address, unit in (("slow", first), ("fast", second)):
        _join(dispatch, address, room=1)
        dispatch.add(unit)
    assert _given(dispatch) == {0: "slow", 1: "fast"}
    assert dispatch.finish(second, "fast", 1.0)
    assert dispatch.assign_slow(5.0) == []
    ((machine, unit),) = dispatch.assign_slow(100.0)
    assert (machine.address, unit) == ("fast", first)
    assert dispatch.assign_slow(200.0) == []
    assert dispatch.finish(first, "fast", 101.0)
    assert not dispatch.finish(first, "slow", 102.0)
    assert dispatch.machines["slow"].units == []


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_unit_ends_once_whatever_happens(data: st.DataObject) -> None:  # noqa: PLR0912
    """Machines join, leave, are lost, refused, blind; units finish, fail, cannot begin; and some kill their machine."""
    dispatch = Dispatch()
    units = _make(data.draw(st.integers(0, 12)))
    for unit in units:
        unit.sendable = data.draw(st.booleans())
        dispatch.add(unit)
    poison = set(data.draw(st.lists(st.sampled_from(units), max_size=3))) if units else set()
    ended: list[Unit] = []
    killed = dict.fromkeys(poison, 0)
    numbers = iter(range(10_000))
    now = 0.0
    for step in range(400):
        now += 10.0
        calm = step > 120  # from then on machines only work
        ready = [m for m in dispatch.machines.values() if m.state is MachineState.READY]
        if len(ready) < 2:
            address = f"m{next(numbers)}"
            _join(dispatch, address, data.draw(st.integers(1, 4)))
            dispatch.machines[address].blind = not calm and data.draw(st.booleans())
        for machine, unit in [*dispatch.assign(now), *dispatch.assign_slow(now)]:
            assert machine.state is MachineState.READY and len(machine.units) <= machine.room
            assert unit.sendable or not machine.blind
        ended += dispatch.take_hopeless()
        for machine in list(dispatch.machines.values()):
            assert sum(bool(unit.losses) for unit in machine.units) <= 1 or any(len(u.machines) > 1 for u in units)
            if machine.state is not MachineState.READY or not machine.units:
                continue
            found = [unit for unit in machine.units if unit in poison]
            if found:
                for unit in found:
                    killed[unit] += 1
                ended += dispatch.leave(machine.address, in_order=False)
                continue
            unit = machine.units[0]
            event = (
                "finish" if calm else data.draw(st.sampled_from(["finish", "fail", "back", "leave", "lose", "refuse"]))
            )
            if (event == "finish" and dispatch.finish(unit, machine.address, now)) or (
                event == "fail" and dispatch.fail(unit, machine.address)
            ):
                ended.append(unit)
            elif event == "back":
                dispatch.give_back(unit, machine.address)
            elif event in ("leave", "lose"):
                ended += dispatch.leave(machine.address, in_order=event == "leave")
            elif event == "refuse":
                dispatch.refuse(machine.address, "why")
        if calm and not dispatch.list_left():
            break
    assert sorted(unit.payload for unit in ended) == [unit.payload for unit in units]
    assert all(unit.over and not unit.machines for unit in units)
    assert all(count <= MOST_LOSSES for count in killed.values())
