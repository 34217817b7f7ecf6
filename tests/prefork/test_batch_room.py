"""How large batches on a GPU are: by what the engine estimates and what they took; the device's figures are made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefork.engines.base import Engine, Job, Segment, Tensors
from prefork.engines.batching import Batching
from prefork.engines.checkpoints.footprint import estimate_encoder
from prefork.engines.text.document import Document
from prefork.memory.batch_room import BatchRoom
from prefork.memory.governor import Governor
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.matrix import Request, Strategy, decide
from prefork.work.inference import LocalInference
from prefork.work.loaded import Loaded
from tests.prefork.machine import FACTS

GB = 10**9
SECOND = 16_000


@given(
    rate=st.floats(0.1, 1e6),
    memory=st.integers(10**8, 10**12),
    factors=st.lists(st.floats(0.01, 8.0), max_size=12),
)
def test_batches_fill_the_memory_that_there_is_and_grow_no_faster_than_twice(
    rate: float, memory: int, factors: list[float]
) -> None:
    room = BatchRoom(rate, memory)
    assert room.num_elements * rate <= memory
    largest = 1
    for factor in factors:
        largest = max(largest, room.num_elements)
        room.add(room.num_elements, round(room.num_elements * rate * factor))
        assert 1 <= room.num_elements <= max(2.2 * largest, memory / rate)


def test_what_always_takes_a_fifth_of_the_estimate_fills_the_memory_after_a_few_batches() -> None:
    room = BatchRoom(1000.0, 10 * GB)
    first = room.num_elements
    for _ in range(40):
        room.add(room.num_elements, 200 * room.num_elements)
    assert 3.5 * first < room.num_elements <= 5 * 10**7


def test_what_takes_more_than_the_estimate_is_made_smaller() -> None:
    room = BatchRoom(1000.0, 10 * GB)
    assert room.add(room.num_elements, 16 * GB)
    assert 2000 * room.num_elements < 10 * GB


class _Large(Engine):
    """A wav2vec2 of 315 M, as far as memory is concerned."""

    name = "large"

    def load(self) -> Any:
        return torch.nn.Identity()

    def estimate_memory(self, segment: Segment) -> int:
        class Config:
            hidden_size, num_attention_heads, intermediate_size = 1024, 16, 4096
            conv_dim, conv_stride, feat_extract_norm = (512,) * 7, (5, 2, 2, 2, 2, 2, 2), "layer"

        return estimate_encoder(Config(), segment.seconds, 0.02)

    def split(self, job: Job, document: Document) -> Sequence[Segment]:
        return []

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        return {"a": torch.zeros(1)}

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        return batch

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        return None

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        return document


def _load(memory: int | None, batching: Batching | None = None, device: str = "cpu") -> Loaded:
    return Loaded(
        {"large": _Large()}, {"large": None}, None, device, False, batching or Batching(), batch_memory=memory
    )


@pytest.mark.parametrize(("gigabytes", "windows"), [(124.5, 140), (70.5, 80), (20.5, 20)])
def test_many_windows_of_30_s_go_together_on_a_gpu(gigabytes: float, windows: int) -> None:
    """omnilingual-asr's rule for training would have 9 of them on an H200, 5 on an H100, and 1 on a 4090."""
    most = _load(round(gigabytes * GB)).choose_batching("large")[0].max_num_elements
    assert most is not None
    assert windows <= most / (30 * SECOND) < 1.3 * windows
    training = Batching().resolve(round(gigabytes * GB))[0].max_num_elements
    assert training is not None and training < 10 * 30 * SECOND


def test_who_says_how_large_batches_are_is_not_corrected() -> None:
    for batching in (Batching(max_num_elements=480_000), Batching(batch_size=3)):
        assert _load(70 * GB, batching).find_room("large") is None
    assert _load(None).find_room("large") is None


def test_a_worker_that_computes_by_itself_measures_its_batches_and_makes_larger_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, taken = type(find_kind("cpu")), [0]
    monkeypatch.setattr(kind, "reset_peak", lambda *_: 5 * GB)
    monkeypatch.setattr(kind, "read_peak", lambda *_: 5 * GB + taken[0])
    loaded = _load(8 * GB)
    inference = LocalInference(loaded)
    inference.open("large")
    segment, sizes = Segment(0, 0.0, 10.0), []
    for first in range(0, 4000, 400):
        for number in range(first, first + 400):
            inference.submit(number, Job("a", None, None), segment, {"a": torch.zeros(1)})  # type: ignore[arg-type]
        taken[0], left = 10_000_000, 400  # next to nothing, whatever is in a batch
        while left:
            sizes.append(len(inference.collect()))
            left -= sizes[-1]
    assert max(sizes) > 1.5 * sizes[0]


def test_who_has_measured_a_batch_says_how_large_the_next_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, taken = type(find_kind("cpu")), [GB]
    monkeypatch.setattr(kind, "reset_peak", lambda *_: 0)
    monkeypatch.setattr(kind, "read_peak", lambda *_: taken[0])
    loaded = _load(8 * GB)
    before, batcher = loaded.list_batches()["large"], loaded.make_batcher("large")
    with loaded.measure_batch("large", batcher, round(before * SECOND)) as use:
        pass
    assert use.seconds == loaded.list_batches()["large"] > 1.5 * before
    taken[0] = round(GB * use.seconds / before)
    with loaded.measure_batch("large", batcher, round(before * SECOND / 100)) as use:
        taken[0] = 1
    assert use.seconds is None  # next to nothing has changed


def test_what_a_server_has_measured_is_known_to_the_next_one_and_to_the_next_run() -> None:
    engines = {"ctc": {"model": "some"}}
    plan = decide(FACTS, Request(engines=("ctc",), strategy=Strategy.SERVER))
    first = Governor(command="test-batches", engines=engines)
    first.recall(plan)
    first.learn_batch("ctc", 8e9, 2 * GB)
    assert first.recall_batches() == {"ctc": [(8e9, 2 * GB)]}
    first.end()
    second = Governor(command="test-batches", engines=engines)
    second.recall(plan)
    assert second.recall_batches() == {"ctc": [(8e9, 2 * GB)]}
    second.end()
