"""The arena: all tensors in one sealed mapping, tied ones tied."""

from __future__ import annotations

import faulthandler
import functools
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefork.weights.arena import Arena

pytestmark = [pytest.mark.dependencies, pytest.mark.usefixtures("script_engine")]
torch.set_num_threads(1)  # one of these tests forks this process: a pool of threads would not be in the child


def _lies_in(tensor: torch.Tensor, arena: Arena) -> bool:
    return arena.find(tensor.data_ptr()) is not None


def test_every_tensor_moves_wherever_it_sits_and_computes_the_same() -> None:
    import script_functions as functions

    model = functions.Tied().eval()
    holder = functions.Holder(model)
    loose = torch.arange(5.0)
    inputs = torch.randn(1, 1, 64)
    before = model.second(model.conv(inputs)[0, 0, :62].new_ones(64))
    arena = Arena.pack({"model": {"holder": holder, "partial": functools.partial(print, loose)}})
    tensors = [*model.parameters(), *model.buffers(), loose]
    assert all(_lies_in(tensor, arena) for tensor in tensors)
    assert torch.equal(before, model.second(torch.ones(64)))
    assert model.second.weight is model.first.weight
    assert torch.equal(loose, torch.arange(5.0))


def test_tied_weights_and_views_take_their_memory_once() -> None:
    big = torch.arange(1000.0)
    views = {"big": big, "slice": big[10:20], "transposed": big.view(10, 100).t(), "step": big[::7]}
    expected = {name: tensor.clone() for name, tensor in views.items()}
    arena = Arena.pack({"model": views})
    assert arena.size == mmap.PAGESIZE
    assert all(torch.equal(views[name], expected[name]) for name in views)
    assert views["slice"].data_ptr() - big.data_ptr() == 40
    assert views["transposed"].stride() == (1, 100)


def test_a_small_view_of_a_large_storage_takes_only_what_it_shows() -> None:
    view = torch.zeros(10_000_000)[500:600]
    arena = Arena.pack({"model": [view]})
    assert arena.size == mmap.PAGESIZE
    assert torch.equal(view, torch.zeros(100))


def test_another_process_finds_its_own_weights_in_the_file_and_maps_them(tmp_path: Path) -> None:
    import script_functions as functions

    path = tmp_path / "arena"
    path.touch()
    torch.manual_seed(1)
    first = functions.Tied().eval()
    arena = Arena.pack({"model": first}, str(path))
    manifest = arena.describe()
    torch.manual_seed(1)
    second = functions.Tied().eval()
    adopted = Arena.adopt({"model": second}, manifest)
    assert all(_lies_in(tensor, adopted) for tensor in [*second.parameters(), *second.buffers()])
    assert second.second.weight is second.first.weight
    for left, right in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    region = adopted.find(second.first.weight.data_ptr())
    assert region is not None and (region.owner, region.tensor) == ("model", "first.weight")
    third = functions.Tied().eval()  # other random numbers
    with pytest.raises(ValueError, match=r"model: its tensor \S+ is not what it was"):
        Arena.adopt({"model": third}, manifest)


def test_a_tensor_on_a_device_that_does_not_survive_a_fork_is_named() -> None:
    model = torch.nn.Linear(2, 2)
    device = torch.device("mps")

    class OnDevice(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return device

    model.weight = torch.nn.Parameter(torch.zeros(2, 2).as_subclass(OnDevice))
    with pytest.raises(ValueError, match=r"engine: its tensor weight lies on mps, .*load it on the CPU"):
        Arena.pack({"engine": model})


def test_a_model_that_two_engines_use_is_packed_once() -> None:
    model = torch.nn.Linear(100, 100)
    alone = Arena.pack({"one": torch.nn.Linear(100, 100)}).size
    part = torch.arange(100.0)[50:60]
    assert Arena.pack({"one": model, "two": {"same": model}}).size == alone
    Arena.pack({"one": part, "two": [part]})
    assert torch.equal(part, torch.arange(50.0, 60.0))


def test_a_region_is_found_by_address_with_its_engine_and_name() -> None:
    first, second = torch.nn.Linear(30, 30), torch.nn.Linear(30, 30)
    arena = Arena.pack({"first": first, "second": second})
    region = arena.find(second.weight.data_ptr() + 8)
    assert region is not None
    assert (region.owner, region.tensor) == ("second", "weight")
    assert arena.find(arena.address - 1) is None
    assert arena.find(arena.address + arena.size) is None


def test_a_sealed_arena_can_be_read_and_kills_who_writes() -> None:
    model = torch.nn.Linear(8, 8)
    arena = Arena.pack({"model": model})
    arena.seal()
    assert model(torch.ones(8)).shape == (8,)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # its report is expected, and no news
        model.weight.data[0, 0] = 1.0
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGSEGV


def test_what_has_no_memory_of_its_own_stays_where_it_is() -> None:
    odd = {"empty": torch.empty(0), "meta": torch.empty(3, device="meta"), "sparse": torch.eye(3).to_sparse()}
    Arena.pack({"model": odd})
    assert odd["meta"].device.type == "meta"
    assert torch.equal(odd["sparse"].to_dense(), torch.eye(3))


def test_a_model_without_tensors_is_no_problem() -> None:
    arena = Arena.pack({"model": {"nothing": "here"}})
    arena.seal()
    assert arena.find(arena.address) is None


@pytest.mark.slow
def test_weights_from_a_file_do_not_count_twice_while_they_are_packed(tmp_path: Path) -> None:
    """In a process of its own, because a high-water mark never falls."""
    script = (
        "import sys, torch, safetensors.torch as st; from pathlib import Path\n"
        "from prefork.weights.arena import Arena\n"
        "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024\n"
        "path = sys.argv[1]\n"
        "tensors = {str(i): torch.ones(1_250_000) for i in range(40)} if sys.argv[2] == 'save' else {}\n"
        "if sys.argv[2] == 'save': st.save_file(tensors, path); sys.exit()\n"
        "before = peak()\n"
        "tensors = st.load_file(path); arena = Arena.pack({'model': tensors})\n"
        "print((peak() - before) / 200)\n"
    )
    path = str(tmp_path / "weights.safetensors")
    for action in ("save", "load"):
        command = [sys.executable, "-c", script, path, action]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.3


def _copy(arena: Arena) -> torch.Tensor:
    return arena._bytes.clone()


def test_after_sealing_and_a_fork_models_are_bound_to_a_copy_and_compute_the_same() -> None:
    import script_functions as functions

    model = functions.Tied().eval()
    holder = functions.Holder(model)
    loose = torch.arange(5.0)
    models = {"model": {"holder": holder, "partial": functools.partial(print, loose)}, "same": model}
    inputs = torch.randn(2, 64)
    arena = Arena.pack(models)
    before = model.second(inputs), model.norm(inputs), model.conv(inputs[:1])
    arena.seal()
    pid = os.fork()
    if pid == 0:
        copy = _copy(arena)
        left = arena.rebind(models, copy)
        after = model.second(inputs), model.norm(inputs), model.conv(inputs[:1])
        tensors = [*model.parameters(), *model.buffers(), loose]
        inside = [0 <= tensor.data_ptr() - copy.data_ptr() < arena.size for tensor in tensors]
        copy.zero_()  # it is this memory that they see, and may write to
        seen = all(not tensor.any() for tensor in tensors)
        same = all(torch.equal(left, right) for left, right in zip(before, after, strict=True))
        os._exit(0 if not left and all(inside) and seen and same and model.second.weight is model.first.weight else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert _lies_in(model.first.weight, arena)
    assert torch.equal(loose, torch.arange(5.0))


def test_views_and_strides_are_the_same_in_a_copy() -> None:
    big = torch.arange(1000.0)
    views = {"big": big, "slice": big[10:20], "transposed": big.view(10, 100).t(), "step": big[::7]}
    expected = {name: tensor.clone() for name, tensor in views.items()}
    strides = {name: tensor.stride() for name, tensor in views.items()}
    arena = Arena.pack({"first": torch.ones(3), "model": views})
    copy = _copy(arena)
    assert arena.rebind({"model": views}, copy) == []
    assert all(torch.equal(views[name], expected[name]) for name in views)
    assert {name: tensor.stride() for name, tensor in views.items()} == strides
    views["slice"].fill_(-1)
    assert big[10:20].tolist() == [-1.0] * 10
    assert big.data_ptr() - copy.data_ptr() == 64


def test_views_of_several_dtypes_into_one_storage_see_the_same_bytes() -> None:
    storage = torch.arange(8.0)
    views = [storage[1:3], storage.view(torch.float64)[1:3]]
    expected = [view.clone() for view in views]
    arena = Arena.pack({"model": views})
    assert all(torch.equal(view, known) for view, known in zip(views, expected, strict=True))
    arena.rebind({"model": views}, _copy(arena))
    assert all(torch.equal(view, known) for view, known in zip(views, expected, strict=True))


def test_a_scripted_module_is_bound_to_a_copy() -> None:
    model = torch.jit.script(torch.nn.Linear(4, 4).eval())
    inputs = torch.randn(2, 4)
    expected = model(inputs)
    arena = Arena.pack({"model": model})
    copy = _copy(arena)
    assert arena.rebind({"model": model}, copy) == []
    assert torch.equal(model(inputs), expected)
    copy.zero_()
    assert not model(inputs).any()


def test_what_was_made_after_packing_moves_too_and_what_cannot_is_named() -> None:
    model = torch.nn.Linear(3, 3)
    model.nothing = torch.empty(0, 3)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("quantised", torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8))
    model.meta = torch.empty(3, device="meta")
    arena = Arena.pack({"model": model})
    table = torch.arange(12.0)
    cached: dict[str, torch.Tensor] = {"table": table, "part": table[3:5]}
    setattr(model, "cached", cached)  # noqa: B010  a module's attribute that is neither parameter nor module
    with torch.inference_mode():
        cached["from inference"] = torch.ones(2)
    address = table.data_ptr()
    assert sorted(arena.rebind({"model": model}, _copy(arena))) == ["model: quantised", "model: sparse"]
    assert table.data_ptr() != address and torch.equal(table, torch.arange(12.0))
    assert cached["part"].data_ptr() - table.data_ptr() == 12
    with torch.inference_mode():
        assert (cached["from inference"] + 1).tolist() == [2.0, 2.0]


def test_memory_that_is_no_copy_of_the_arena_is_refused() -> None:
    model = torch.nn.Linear(3, 3)
    arena = Arena.pack({"model": model})
    with pytest.raises(ValueError, match=r"10 torch.uint8 is no copy of the arena's 4096 bytes"):
        arena.rebind({"model": model}, torch.zeros(10, dtype=torch.uint8))
