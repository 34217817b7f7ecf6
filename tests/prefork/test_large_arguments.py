"""Arrays and tensors on their way to a worker and back, in memory that both map: nobody sees what another has written,
and what is held stays as it is."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork import Runtime
from prefork.wire import blocks
from prefork.wire.blocks import LARGE, Blocks, Mapped, Place, Placed
from prefork.wire.pickling import Pickled, dump_apart

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(workers=2, notice=lambda _: None) as shared:
        while len(shared.supervisor.status()) < 2:  # or a test is taken for the one that has left a process
            time.sleep(0.01)
        yield shared


def make_array(kind: str) -> Any:
    if kind == "read-only":
        array = np.arange(MEGABYTE)
        array.flags.writeable = False
        return array
    kinds: dict[str, Any] = {
        "array": lambda: np.arange(MEGABYTE),
        "Fortran order": lambda: np.asfortranarray(np.arange(MEGABYTE).reshape(1024, 1024)),
        "every other": lambda: np.arange(MEGABYTE)[::2],
        "bytearray": lambda: bytearray(range(256)) * 4096,
        "tensor": lambda: torch.arange(MEGABYTE),
        "transposed": lambda: torch.arange(MEGABYTE).reshape(1024, 1024).T,
        "a slice": lambda: torch.arange(4 * MEGABYTE)[MEGABYTE : 2 * MEGABYTE],
        "bfloat16": lambda: torch.arange(MEGABYTE).to(torch.bfloat16),
        "complex": lambda: torch.complex(torch.arange(MEGABYTE).float(), torch.ones(MEGABYTE)),
        "lazily conjugate": lambda: torch.complex(torch.arange(MEGABYTE).float(), torch.ones(MEGABYTE)).conj(),
        "parameter": lambda: torch.nn.Parameter(torch.arange(MEGABYTE).float()),
        "wants a gradient": lambda: torch.ones(MEGABYTE, requires_grad=True),
        "sparse": lambda: torch.eye(1024).to_sparse(),
        "many": lambda: [np.full(LARGE, number) for number in range(100)],
        "small": lambda: np.arange(3),
        "empty": lambda: torch.empty(0),
    }
    return kinds[kind]()


KINDS = [
    "array",
    "read-only",
    "Fortran order",
    "every other",
    "bytearray",
    "tensor",
    "transposed",
    "a slice",
    "bfloat16",
    "complex",
    "lazily conjugate",
    "parameter",
    "wants a gradient",
    "sparse",
    "many",
    "small",
    "empty",
]


def describe(thing: Any) -> Any:
    """What there is to compare."""
    if isinstance(thing, list):
        return [describe(one) for one in thing]
    if isinstance(thing, torch.Tensor):
        dense = thing.detach().to_dense().resolve_conj()
        form = (type(thing).__name__, str(thing.dtype), tuple(thing.shape), thing.requires_grad, str(thing.layout))
        return form, dense.contiguous().view(torch.uint8).numpy().tobytes() if dense.numel() else b""
    if isinstance(thing, np.ndarray):
        return str(thing.dtype), thing.shape, thing.tobytes()
    return bytes(thing)


@pytest.mark.parametrize("kind", KINDS)
def test_it_arrives_as_it_is_and_comes_back_so(runtime: Runtime, kind: str) -> None:
    thing = make_array(kind)
    expected = describe(thing)
    there, back = runtime.submit(lambda thing: (describe(thing), thing), thing).result()
    assert there == expected
    assert describe(back) == expected
    if isinstance(back, np.ndarray):  # as with ProcessPoolExecutor, whatever the caller's is
        assert back.flags.writeable
        assert runtime.submit(lambda array: array.flags.writeable, thing).result()


def overwrite(thing: Any) -> Any:
    if isinstance(thing, torch.Tensor):
        with torch.no_grad():
            thing.fill_(7)
    else:
        thing[:] = type(thing)(len(thing)) if isinstance(thing, bytearray) else 7
    return thing


@pytest.mark.parametrize("kind", ["array", "bytearray", "tensor", "a slice", "wants a gradient"])
def test_what_a_worker_writes_reaches_nobody_else(runtime: Runtime, kind: str) -> None:
    thing = make_array(kind)
    expected = describe(thing)
    changed = describe(overwrite(make_array(kind)))
    for _ in range(4):  # every worker, and blocks that were written to before
        assert describe(runtime.submit(overwrite, thing).result()) == changed
    assert describe(thing) == expected
    for _ in range(4):
        assert describe(runtime.submit(lambda thing: thing, thing).result()) == expected


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_what_the_caller_writes_into_a_result_reaches_no_worker(runtime: Runtime, kind: str) -> None:
    thing = make_array(kind)
    expected = describe(thing)
    result = runtime.submit(lambda thing: thing, thing).result()
    overwrite(result)
    assert describe(thing) == expected
    assert describe(runtime.submit(lambda thing: thing, thing).result()) == expected


def test_what_a_worker_keeps_stays_as_it_is(runtime: Runtime) -> None:
    def keep(array: Any) -> int:
        import builtins

        builtins.kept = array  # type: ignore[attr-defined]
        return os.getpid()

    def look() -> tuple[int, int, bool]:
        import builtins

        kept = getattr(builtins, "kept", None)
        return os.getpid(), 0 if kept is None else int(kept[0]), kept is None or bool((kept == kept[0]).all())

    keepers = {runtime.submit(keep, np.full(MEGABYTE, number)).result(): number for number in range(1, 9)}
    for number in range(20):
        runtime.submit(len, np.full(MEGABYTE, 100 + number)).result()
    for pid, value, is_whole in [runtime.submit(look).result() for _ in range(20)]:
        assert is_whole
        assert value == keepers.get(pid, 0)


def test_a_call_that_is_tried_again_finds_its_arguments_as_they_were(tmp_path: Path) -> None:
    def die_once(array: Any, marker: Path) -> int:
        total = int(array.sum())
        array[:] = 7
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return total

    with Runtime(workers=1, notice=lambda _: None) as runtime:
        assert runtime.submit(die_once, np.ones(MEGABYTE, np.int64), tmp_path / "marker").result() == MEGABYTE


def test_results_outlive_the_runtime() -> None:
    with Runtime(workers=1) as runtime:
        results = [runtime.submit(np.full, MEGABYTE, number).result() for number in range(5)]
    for number, result in enumerate(results):
        assert (result == number).all()
        result[:] = 9
        assert (result == 9).all()


def test_tensors_that_share_memory_share_it_there() -> None:
    base = torch.arange(MEGABYTE)
    dumped = dump_apart((base, base.view(1024, 1024), base[:3]))
    assert len(dumped.buffers) == 1
    first, second, alone = Pickled(dumped.data, [memoryview(bytearray(buffer)) for buffer in dumped.buffers]).load()
    first[0] = 5
    assert second[0, 0] == 5
    assert alone.tolist() == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["send", "drop", "write", "trim"]), st.integers(1, 6)), max_size=40))
def test_a_view_that_is_held_never_changes(steps: list[tuple[str, int]]) -> None:
    """Blocks are used again and again, and none that anybody looks at."""
    ours, theirs = Blocks(), Mapped()
    held: list[tuple[memoryview | bytearray, bytes]] = []
    number = 0
    try:
        for step, size in steps:
            if step == "send":
                number += 1
                data = bytes([number % 256]) * (size * LARGE)
                place = ours.put(memoryview(data), "them")
                fresh, fds = ours.list_fresh([place], "them")
                for (block, length), fd in zip(fresh, fds, strict=True):
                    theirs.open(block, length, fd)
                held.append((theirs.view(place), data))
            elif step == "drop" and held:
                del held[size % len(held)]
            elif step == "write" and held:
                view, data = held[size % len(held)]
                if isinstance(view, memoryview) and not view.readonly:
                    view[:1] = b"\xff"
                    held[size % len(held)] = view, b"\xff" + data[1:]
            elif step == "trim":
                ours.release(theirs.take_released(), "them")
                ours.trim()
                theirs.forget(ours.take_gone("them"))
            view = bytearray()
            assert all(bytes(view) == data for view, data in held)
            view = bytearray()
    finally:
        held.clear()
        ours.close()


def test_memory_that_nobody_has_used_for_a_while_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Blocks(), Mapped()
    before = len(os.listdir("/proc/self/fd"))
    place = send(ours, theirs, b"x" * MEGABYTE)
    view = theirs.view(place)
    monkeypatch.setattr(blocks, "IDLE_SECONDS", 0.0)
    ours.release(theirs.take_released(), "them")
    ours.trim()
    assert isinstance(place, Placed) and place.block in ours  # somebody looks at it
    del view
    ours.release(theirs.take_released(), "them")
    ours.trim()
    assert ours.take_gone("them") == [place.block]
    theirs.forget([place.block])
    assert place.block not in ours
    assert len(os.listdir("/proc/self/fd")) <= before  # others may end theirs meanwhile


def send(ours: Blocks, theirs: Mapped, data: bytes) -> Place:
    place = ours.put(memoryview(data), "them")
    for (block, length), fd in zip(*ours.list_fresh([place], "them"), strict=True):
        theirs.open(block, length, fd)
    return place


def test_without_room_for_another_block_a_buffer_goes_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise OSError("no room")

    monkeypatch.setattr("prefork.wire.blocks.mmap.mmap", refuse)
    ours = Blocks()
    before = len(os.listdir("/proc/self/fd"))
    assert ours.put(memoryview(b"data" * LARGE), "them") == bytearray(b"data" * LARGE)
    assert len(os.listdir("/proc/self/fd")) == before


def test_there_are_never_more_blocks_than_so_many() -> None:
    ours = Blocks(4)
    places = [ours.put(memoryview(bytes([number]) * LARGE), "them") for number in range(10)]
    assert [isinstance(place, Placed) for place in places] == [True] * 4 + [False] * 6
    assert places[9] == bytearray([9]) * LARGE
    ours.close()


def test_a_call_that_goes_by_value_has_its_own_arrays(runtime: Runtime) -> None:
    """The attempt to pickle it by name has left some out before it came to the lambda."""
    first, second = np.full(MEGABYTE, 1.0), np.full(MEGABYTE, 2.0)
    found = runtime.submit(lambda a, _, b: (a, (lambda: 0), b), first, lambda: 0, second).result()
    assert [array[0] for array in (found[0], found[2])] == [1.0, 2.0]


def test_an_argument_that_a_worker_kept_and_hands_back_later_is_the_same() -> None:
    def delay(array: Any) -> Any:
        import builtins

        before = getattr(builtins, "before", None)
        builtins.before = array  # type: ignore[attr-defined]
        return before

    with Runtime(workers=1) as runtime:
        futures = [runtime.submit(delay, np.full(LARGE, number)) for number in range(1500)]
        for number, future in enumerate(futures):
            found = future.result()
            assert found is None if number == 0 else (found == number - 1).all()


def test_after_a_fork_parent_and_child_have_their_own(runtime: Runtime) -> None:
    made = runtime.submit(np.full, MEGABYTE, 1).result()
    same = runtime.submit(lambda array: array, np.full(MEGABYTE, 2)).result()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        made[:10] = same[:10] = -5
        os.read(reading, 1)  # while the parent goes on
        good = (made[10:] == 1).all() and (same[10:] == 2).all() and (made[:10] == -5).all()
        os._exit(0 if good else 1)
    time.sleep(0.2)
    assert (made == 1).all() and (same == 2).all()
    del made, same
    for number in range(100, 140):
        runtime.submit(lambda array: array, np.full(MEGABYTE, number)).result()
    os.write(writing, b"x")
    assert os.waitpid(child, 0)[1] == 0
    os.close(reading)
    os.close(writing)


def test_results_may_be_kept_whatever_their_number() -> None:
    """Beyond the blocks that there may be, and the files that may be open, they go the ordinary way."""
    with Runtime(workers=2) as runtime:
        kept = [runtime.submit(np.full, LARGE, number).result() for number in range(300)]
        handed_back = [runtime.submit(lambda array: array, np.full(LARGE, number)).result() for number in range(300)]
        assert all((array == number).all() and array.flags.writeable for number, array in enumerate(kept))
        assert all((array == number).all() and array.flags.writeable for number, array in enumerate(handed_back))
        assert len(os.listdir("/proc/self/fd")) < 500


def test_blocks_of_many_sizes_are_forgotten_on_both_sides() -> None:
    def count() -> int:
        return Path("/proc/self/maps").read_text().count("/memfd:prefork-arena")

    with Runtime(workers=1) as runtime:
        for size in range(LARGE, 300 * LARGE, LARGE):
            runtime.submit(np.zeros, size, np.uint8).result()
            runtime.submit(len, np.zeros(size, np.uint8)).result()
        assert runtime.submit(count).result() < 300
        assert count() < 300


def test_blocks_of_calls_that_were_taken_back_become_free() -> None:
    with Runtime(workers=2) as runtime:
        for _ in range(20):
            futures: list[Any] = [runtime.submit(time.sleep, 0.05)]
            futures += [runtime.submit(len, np.zeros(LARGE, np.uint8)) for _ in range(60)]
            for future in futures:
                future.result()
        time.sleep(1.0)
        assert runtime.supervisor._processes is not None
        held = [b for b in runtime.supervisor._processes.workers._blocks._all.values() if b.holders]
        assert held == []


def test_a_part_of_an_argument_does_not_keep_all_of_it() -> None:
    place = Blocks().put(memoryview(bytes(MEGABYTE)), "them")
    assert isinstance(place, Placed)
    ours, theirs = Blocks(), Mapped()
    view = theirs.view(send(ours, theirs, bytes(MEGABYTE)))
    assert theirs.locate(memoryview(view)) is not None
    assert theirs.locate(memoryview(view)[: MEGABYTE // 4]) is None
