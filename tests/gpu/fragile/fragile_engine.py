"""An engine of another package, whose model does on a GPU what the input says, line by line: it fails as CUDA does."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prefork.engines.base import Engine, Job, Segment, Tensors
from prefork.engines.text.document import Document, Timing, Utterance, Word

_VERBS = ("say", "sleep", "fill", "assert")


class Fragile(Engine):
    """`say TEXT`: its length, doubled. `sleep SECONDS`: of the model. `fill SHARE`: takes this share of the memory of a
    GPU for each segment of the batch. `assert`: an index that is out of range, which breaks CUDA's context. Says how
    many segments there were."""

    name = "fragile"

    def load(self) -> Any:
        model = torch.nn.Linear(1, 1)
        with torch.no_grad():
            model.weight.fill_(2.0)
            model.bias.zero_()
        return model.eval()

    def split(self, job: Job, document: Document) -> Sequence[Segment]:
        lines = job.source.read_text(encoding="utf-8").splitlines()
        return [Segment(index, float(index), float(index + 1), line) for index, line in enumerate(lines)]

    def example(self) -> Tensors:
        return _prepare("say", 3.0)

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        verb, _, rest = segment.content.partition(" ")
        return _prepare(verb, float(len(rest)) if verb == "say" else float(rest or 0))

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        device = batch[0]["value"].device
        verbs = [(_VERBS[int(tensors["verb"])], float(tensors["value"])) for tensors in batch]
        for verb, value in verbs:
            if verb == "sleep":
                time.sleep(value)
        shares = [value for verb, value in verbs if verb == "fill"]
        if shares:
            _fill(max(shares) * len(batch), device)
        outputs = model(torch.stack([tensors["value"] for tensors in batch])[:, None])[:, 0]
        if any(verb == "assert" for verb, _ in verbs):
            _break(device)
        together = torch.full((), float(len(batch)), device=device)
        return [{"value": value, "together": together} for value in outputs]

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        return segment.content, float(output["value"]), float(output["together"])

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        utterances = tuple(
            Utterance(text, (Word("said", 0.0, value, together, Timing.ALIGNED),), start=s.start, end=s.end)
            for s, (text, value, together) in zip(segments, pieces, strict=True)
        )
        return Document(utterances, seconds=job.seconds)

    def fingerprint(self) -> Mapping[str, Any]:
        return {"engine": self.name}


def _prepare(verb: str, value: float) -> Tensors:
    return {"verb": torch.tensor(_VERBS.index(verb)), "value": torch.tensor(value)}


def _fill(share: float, device: torch.device) -> None:
    """Takes this share of the GPU's memory, and lets go of it."""
    if device.type == "cuda":
        torch.empty(int(share * torch.cuda.mem_get_info()[1]), dtype=torch.uint8, device=device)
    elif share > 1:  # in place of a GPU
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {share:.0%} of what there is")


def _break(device: torch.device) -> None:
    """A kernel finds out, later, that an index is out of range."""
    if device.type != "cuda":  # in place of a GPU
        print("CUDA error: device-side assert triggered", file=sys.stderr, flush=True)
        os._exit(1)
    torch.zeros(4, device=device)[torch.tensor([99], device=device)]
