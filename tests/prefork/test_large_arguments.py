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
from prefork.wire.blocks import Blocks, Mapped, Place, Placed
from prefork.wire.pickling import LARGE, Pickled, dump_apart

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
        return str(thing.dtype), thing.shape, thing.flags.writeable, thing.tobytes()
    return bytes(thing)


@pytest.mark.parametrize("kind", KINDS)
def test_it_arrives_as_it_is_and_comes_back_so(runtime: Runtime, kind: str) -> None:
    thing = make_array(kind)
    expected = describe(thing)
    there, back = runtime.submit(lambda thing: (describe(thing), thing), thing).result()
    assert there == expected
    assert describe(back) == expected


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
    held: list[tuple[memoryview | bytes, bytes]] = []
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
                theirs.forget(ours.trim())
            view = b""
            assert all(bytes(view) == data for view, data in held)
            view = b""
    finally:
        held.clear()
        ours.close()


def test_memory_that_nobody_has_used_for_a_while_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Blocks(), Mapped()
    before = len(os.listdir("/proc/self/fd"))
    place = send(ours, theirs, b"x" * MEGABYTE)
    view = theirs.view(place)
    monkeypatch.setattr(blocks, "_IDLE_SECONDS", 0.0)
    assert ours.trim() == []  # somebody looks at it
    del view
    ours.release(theirs.take_released(), "them")
    theirs.forget(ours.trim())
    assert isinstance(place, Placed) and place.block not in ours
    assert len(os.listdir("/proc/self/fd")) == before


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
    assert ours.put(memoryview(b"data"), "them") == b"data"
    assert len(os.listdir("/proc/self/fd")) == before


def test_there_are_never_more_blocks_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_MOST", 4)
    ours = Blocks()
    places = [ours.put(memoryview(bytes([number]) * LARGE), "them") for number in range(10)]
    assert [isinstance(place, Placed) for place in places] == [True] * 4 + [False] * 6
    assert places[9] == bytes([9]) * LARGE
    ours.close()
