"""Segments together and alone on a GPU, in TF32 and in bfloat16; and what goes to it and comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from prefork.engines.alignment.forced_aligner import AlignedLines
from prefork.engines.base import Job, Segment, Tensors
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.text import formats
from prefork.platform_matrix.device_kinds import find_kind
from prefork.work.loading import uses_tf32
from prefork.work.staging import open_staging
from tests.gpu.forked import do
from tests.gpu.machine import TORCH, needs_cuda
from tests.prefork.command import SAMPLES


@dataclass(frozen=True, slots=True)
class Computed:
    """What a model made of segments. times: start and end of every word, seconds."""

    log_probs: Sequence[torch.Tensor]
    times: Sequence[tuple[float, float]]


def _compute(device: str, dtype: str = "float32", together: int = 1, fast: bool = True) -> Computed:
    """Of the sample recordings, so many segments at a time. fast: with TF32, as prefork has it on a GPU."""
    engine = CTCAligner(dtype=dtype)
    engine.setup()
    loaded: Any = engine.load()
    model = loaded.to(device)
    if fast:
        find_kind(device).speed_up()
    prepared = [(job, segment, engine.prepare(job, segment)) for job, segment in _split(engine)]
    outputs: list[Tensors] = []
    with torch.inference_mode():
        for first in range(0, len(prepared), together):
            batch = [{"waveform": t["waveform"].to(device)} for _, _, t in prepared[first : first + together]]
            outputs += [{"log_probs": output["log_probs"].cpu()} for output in engine.infer(model, batch)]
    pieces = [engine.finish(job, segment, output) for (job, segment, _), output in zip(prepared, outputs, strict=True)]
    return Computed([output["log_probs"] for output in outputs], _list_times(pieces))


def _split(engine: CTCAligner) -> list[tuple[Job, Segment]]:
    found = []
    for source in sorted(Path(SAMPLES).glob("*.cha")):
        job = Job(source.stem, source, source.with_suffix(".flac"))
        found += [
            (job, segment) for segment in engine.split(job, formats.open_document(job.source, job.media, job.seconds))
        ]
    return found


def _list_times(pieces: Sequence[AlignedLines]) -> list[tuple[float, float]]:
    return [(word.start or 0.0, word.end or 0.0) for piece in pieces for line in piece.words for word in line]


def _compare(title: str, found: Computed, expected: Computed) -> int:
    """How many words have other times. Prints what differs."""
    assert isinstance(found, Computed), found
    assert isinstance(expected, Computed), expected
    pairs = zip(found.log_probs, expected.log_probs, strict=True)
    largest = max(float((a.exp() - b.exp()).abs().max()) for a, b in pairs)
    off = [abs(a - b) for a, b in zip(chain(*found.times), chain(*expected.times), strict=True)]
    other = sum(first != second for first, second in zip(found.times, expected.times, strict=True))
    print(
        f"\n{title}: the largest difference of a probability is {largest:.1e}; of {len(expected.times)} words {other} "
        f"have other times, by at most {max(off):.3f} s"
    )
    return other


def test_a_segment_has_the_same_word_times_alone_and_in_company() -> None:
    alone = do(lambda: _compute(TORCH))
    for together in (3, 8):
        assert _compare(f"{together} segments together", do(partial(_compute, TORCH, together=together)), alone) == 0


def test_in_bfloat16_few_words_have_other_times() -> None:
    expected = do(lambda: _compute("cpu"))
    found = do(lambda: _compute(TORCH, "bfloat16", together=8))
    assert _compare("bfloat16, beside float32 on the CPU", found, expected) <= 0.15 * len(expected.times)
    alone = do(lambda: _compute(TORCH, "bfloat16"))
    _compare("bfloat16, 8 together beside alone", found, alone)


def test_with_tf32_few_words_have_other_times() -> None:
    expected = do(lambda: _compute(TORCH, fast=False))
    found = do(lambda: _compute(TORCH))
    assert _compare("TF32, beside float32 on the same device", found, expected) <= 0.05 * len(expected.times)


@needs_cuda
def test_tf32_is_on_where_the_card_has_it() -> None:
    def look() -> tuple[tuple[int, int], bool | None, bool, float]:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        values = torch.randn(1024, 1024, device="cuda")
        exact = values @ values
        find_kind("cuda").speed_up()
        difference = float((values @ values - exact).abs().max() / exact.abs().max())
        flags = uses_tf32("cuda"), torch.backends.cudnn.allow_tf32
        return torch.cuda.get_device_capability(), *flags, difference

    found = do(look)
    assert isinstance(found, tuple), found
    capability, products, convolutions, difference = found
    print(f"\ncapability {capability}: TF32 {products}, a product of 1024 x 1024 differs by {difference:.1e}")
    assert (capability[0] >= 8) == products
    assert products <= convolutions
    assert (difference > 0) == products


def _make_batch(seed: int) -> list[Tensors]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "waveform": torch.randn(1 + 100_003 * place, generator=generator),
            "tokens": torch.arange(7 + place),
            "mask": torch.rand(3, 5, generator=generator) > 0.5,
            "nothing": torch.zeros(0),
            "half": torch.randn(17, 33, generator=generator).T.bfloat16(),
        }
        for place in range(4)
    ]


def test_batches_arrive_whole_while_others_are_under_way() -> None:
    """Two in flight at any time, as the server has them, with a device that is kept busy in between."""

    def stage() -> list[bool]:
        device = open_staging(TORCH)
        load = torch.randn(2048, 2048, device=TORCH)
        whole, flying = [], []
        for seed in range(20):
            sent = _make_batch(seed)
            staged = device.send(sent)
            for _ in range(4):
                load = (load @ load).clamp(-1, 1)
            outputs = [{name: tensor + tensor for name, tensor in tensors.items()} for tensors in staged]
            flying.append((device.fetch(outputs), seed))
            del staged, outputs, sent
            if len(flying) == 2:
                whole.append(_is_whole(*flying.pop(0)))
        return [*whole, *(_is_whole(*one) for one in flying)]

    def _is_whole(results: object, seed: int) -> bool:
        pairs = zip(results.wait(), _make_batch(seed), strict=True)  # type: ignore[attr-defined]
        return all(
            torch.equal(got[name].cpu(), sent[name] + sent[name]) and got[name].device.type == "cpu"
            for got, sent in pairs
            for name in sent
        )

    assert do(stage) == [True] * 20
