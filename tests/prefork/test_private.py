"""Tensors that a model writes to as it computes: each worker has its own, and all else is shared."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from prefork import LoadError, Runtime, WorkerDied
from prefork.weights.arena import Arena
from prefork.weights.private import check_patterns, is_copied_on_write, is_private
from prefork.weights.walk import walk

pytestmark = pytest.mark.usefixtures("script_engine")


@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_a_model_that_writes_to_private_buffers_computes_in_each_worker_what_it_computes_alone(strategy: str) -> None:
    import script_private

    model = script_private.load_decoder()
    expected = [script_private.step(model)[1:] for _ in range(12)]
    load, private = script_private.load_decoder, script_private.PRIVATE
    with Runtime(load=load, private=private, workers=2, threads=1, strategy=strategy) as runtime:
        deadline = time.monotonic() + 60
        while sum(worker.ready_seconds is not None for worker in runtime.supervisor.status()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found = list(runtime.map(script_private.step, [0.2] * 12))
    assert len({pid for pid, *_ in found}) == 2
    for pid in {pid for pid, *_ in found}:
        own = [tuple(rest) for one, *rest in found if one == pid]
        assert own == expected[: len(own)]


def test_without_private_the_worker_dies_and_says_which_buffer_and_what_to_do() -> None:
    import script_private

    with Runtime(load=script_private.load_decoder, workers=1) as runtime:
        text = (
            r"wrote to shared weights \((\S+)\), .*each worker is to have its own: Runtime\(\.\.\., private=\('\1',\)\)"
        )
        with pytest.raises(WorkerDied, match=text):
            runtime.submit(script_private.step).result()


def test_what_is_not_private_stays_read_only() -> None:
    import script_private

    with Runtime(load=script_private.load_decoder, private=["kv_cache"], workers=1) as runtime:
        error = runtime.submit(script_private.write_weight).exception()
    assert isinstance(error, WorkerDied)
    assert "wrote to shared weights (linear.weight)" in str(error)


@pytest.mark.parametrize("shared", [False, True])
def test_a_cache_outside_all_modules_is_private_even_if_it_was_shared_memory(shared: bool) -> None:
    from functools import partial

    import script_private

    load = partial(script_private.load_holder, shared)
    with Runtime(load=load, private=["past.*"], workers=2, strategy="fork") as runtime:
        found = list(runtime.map(script_private.count, [0.2] * 6))
    counts = [[number for one, number in found if one == pid] for pid in {pid for pid, _ in found}]
    assert len(counts) == 2
    assert all(numbers == [float(number + 1) for number in range(len(numbers))] for numbers in counts)


@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_a_pattern_that_matches_nothing_is_refused_with_names_that_there_are(strategy: str) -> None:
    import script_private

    patterns = ["*.steps", "*.kv_cahce"]
    runtime = Runtime(load=script_private.load_decoder, private=patterns, workers=2, strategy=strategy)
    with pytest.raises(
        LoadError,
        match=r"private: '\*.kv_cahce' matches no tensor of what load returned, which has kv_cache, .* and 1 more",
    ):
        runtime.wait_until_loaded()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"load": print, "private": "*.kv_cache"},
            r'private must be a sequence of patterns, as \("\*.kv_cache",\), not',
        ),
        ({"load": print, "private": [3]}, r"private must be a sequence of patterns.* not \[3\]"),
        ({"engine": "ctc", "private": ["x"]}, "private names tensors of what load returns, and there is no load"),
    ],
)
def test_what_is_no_sequence_of_patterns_is_refused_at_once(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Runtime(**options)  # type: ignore[arg-type]


def test_a_tensor_is_called_what_its_module_calls_it_with_the_path_to_the_module_in_front() -> None:
    import script_private

    layers = torch.nn.Sequential(torch.nn.Linear(2, 2))
    layers.table = [torch.zeros(1), {"keys": torch.zeros(2)}]  # type: ignore[assignment]
    loose = torch.zeros(3)
    root = {"decoder": script_private.Decoder(), "parts": (layers, torch.zeros(4)), 5: lambda: loose}
    names = {name for name, _ in walk(root)}
    assert {"decoder.kv_cache", "decoder.norm.running_mean", "parts.0.0.weight", "parts.1", "5.loose"} <= names
    assert {"parts.0.table.0", "parts.0.table.1.keys"} <= names
    assert {name for name, _ in walk(layers)} == {"0.weight", "0.bias", "table.0", "table.1.keys"}


def test_a_tensor_has_its_modules_name_even_where_something_else_leads_to_it_first() -> None:
    model = torch.nn.Linear(2, 2)
    for holder in (
        {"model": model, "all": list(model.parameters())},
        {"all": list(model.parameters()), "model": model},
    ):
        assert {name for name, _ in walk(holder)} == {"model.weight", "model.bias"}


@pytest.mark.parametrize(
    ("pattern", "names", "matches"),
    [
        ("*.kv_cache", ["kv_cache"], True),
        ("*.kv_cache", ["layers.3.kv_cache"], True),
        ("kv_cache", ["layers.3.kv_cache"], False),
        ("layers.?.kv_cache", ["layers.3.kv_cache"], True),
        ("*.kv_cache", ["other", "kv_cache"], True),
        ("*.KV_cache", ["kv_cache"], False),
        ("*.kv_cache", ["my_kv_cache"], False),
        ("past[0]", ["past[0]"], True),
    ],
)
def test_a_pattern_is_matched_as_a_file_name_is_and_finds_the_outermost_too(
    pattern: str, names: list[str], matches: bool
) -> None:
    assert is_private(names, [pattern]) == matches


def test_a_model_without_tensors_has_nothing_private() -> None:
    with pytest.raises(ValueError, match=r"'\*' matches no tensor of what load returned, which has no tensors"):
        check_patterns([], ["*"])


def test_private_tensors_stay_where_they_are_with_all_that_look_there(tmp_path: Path) -> None:
    cache = torch.arange(100.0)
    views = {"cache": cache, "part": cache[10:20], "weight": torch.ones(5000)}
    path = tmp_path / "arena"
    path.touch()
    arena = Arena.pack({"load": views}, str(path), ["part"])
    arena.seal()
    cache[10] = -1.0
    assert views["part"][0] == -1.0
    assert arena.find(cache.data_ptr()) is None and arena.find(views["weight"].data_ptr()) is not None
    own = {"cache": torch.zeros(100), "part": torch.zeros(3), "weight": torch.ones(5000)}
    Arena.adopt({"load": own}, arena.describe(), ["part", "cache"])  # may be another's than in the first process
    own["cache"][0] = own["part"][0] = 2.0
    with pytest.raises(ValueError, match="tensor part is not what it was"):
        Arena.adopt({"load": {**own, "part": torch.zeros(3)}}, arena.describe(), ["cache"])


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_private_tensor_of_a_mapped_file_is_written_to_in_memory_alone(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "table"
    np.arange(10_000.0).tofile(path)
    table = torch.from_numpy(np.memmap(path, dtype=np.float64, mode=mode))  # type: ignore[call-overload]
    assert is_copied_on_write(torch.zeros(10, dtype=torch.uint8))
    Arena.pack({"load": {"table": table}}, private=["table"])
    table[3] = -1.0
    assert table[:5].tolist() == [0.0, 1.0, 2.0, -1.0, 4.0]
    assert np.fromfile(path).tolist() == list(range(10_000))
