"""The engines on an Apple GPU, as far as Linux can show it: see tests.systems.metal."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from prefork.engines.base import LoadError, Tensors
from prefork.engines.whisper import decoding
from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.matrix import Request, decide
from prefork.wire.specification import Specification
from prefork.work.loaded import Loaded
from prefork.work.loading import _move, load
from prefork.work.torch_state import is_out_of_memory, release
from tests.systems.metal import MetalTensor, apple_gpu

GB = 1 << 30
MAC = Facts(
    *("darwin", "25.1", "arm64", "3.12.1", ("spawn", "fork"), 8, 8, 16 * GB, 16 * GB, 9 * GB),
    devices=Devices("2.14", ("mps",), (Device("mps", "Apple GPU (arm64)", 12 * GB, 12 * GB),)),
)
ENGINES: list[Any] = [("ctc", {}), ("whisper", {"model": "tiny.en"}), ("whisper-aligner", {"model": "tiny.en"})]


@pytest.fixture(autouse=True)
def _left_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


def _load(engine: str, options: dict[str, Any], **request: Any) -> Loaded:
    plan = decide(MAC, Request((engine,), **request))
    return load(Specification({engine: options}, plan=plan))


def _infer(loaded: Loaded, engine: str) -> list[Tensors]:
    """Of the example and the longest one, together."""
    one = loaded.engines[engine]
    batch = [example for example in (one.example(), one.longest_example()) if example is not None]
    return list(loaded.infer(engine, batch))


@pytest.mark.parametrize(("engine", "options"), ENGINES, ids=[name for name, _ in ENGINES])
def test_it_computes_there_what_it_does_on_the_cpu_and_leaves_nothing_there(
    engine: str, options: dict[str, Any]
) -> None:
    """The fallback of Whisper's decoding, which draws in numbers that MPS has not, included: tones are no speech."""
    expected = _infer(_load(engine, options, force_cpu=True, copies=True), engine)
    with apple_gpu():
        loaded = _load(engine, options)
        assert loaded.device == "mps"
        found = _infer(loaded, engine)
        release(loaded.device)
        assert not any(isinstance(tensor, MetalTensor) for output in found for tensor in output.values())
    assert len(found) == len(expected) == 2
    for here, there in zip(expected, found, strict=True):
        assert {name: tensor.shape for name, tensor in here.items()} == {n: t.shape for n, t in there.items()}
        for name, tensor in here.items():
            torch.testing.assert_close(there[name], tensor, rtol=1e-4, atol=1e-4)


def test_what_is_drawn_is_the_same_where_there_are_no_wide_numbers() -> None:
    logits = torch.linspace(-2, 2, 60).repeat(3, 1)

    def draw(device: str) -> list[int]:
        drafts: Any = [decoding._Draft(generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
        return decoding._pick(logits.to(device), drafts, 0.7)[0]

    expected = draw("cpu")
    with apple_gpu():
        assert draw("mps") == expected


def test_want_of_memory_there_is_known_as_such() -> None:
    with apple_gpu(most=1 << 10), pytest.raises(RuntimeError) as caught:
        torch.zeros(1000, device="mps") + 1
    assert is_out_of_memory(caught.value)


def test_weights_that_it_cannot_hold_are_refused_by_name() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).double())
    with apple_gpu():
        with pytest.raises(
            LoadError, match=r"score: its tensor 1\.weight is float64, which mps cannot hold; load the "
        ):
            _move("score", model, "mps")
        assert _move("score", model.float(), "mps")[0].weight.device.type == "mps"
