"""An engine that raises what its input says, in the step that it says: `infer KeyError`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from prefork.engines.base import Job, Segment, Tensors
from prefork.engines.text.document import Document

if TYPE_CHECKING:
    from tests.data.script_engine.script_engine import ScriptEngine
else:
    from script_engine import ScriptEngine

STEPS = ("split", "estimate", "prepare", "infer", "finish", "join")


class Unprintable(RuntimeError):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Unpicklable(Exception):
    """It takes more than its arguments, and holds what cannot be pickled."""

    def __init__(self, text: str, place: object) -> None:
        super().__init__(text)
        self.place = (place, lambda: None)


class Foreign:
    """Nothing that the supervisor could import."""


KINDS: Mapping[str, Any] = {
    "KeyError": KeyError("a bug"),
    "StopIteration": StopIteration("a bug"),
    "GeneratorExit": GeneratorExit("a bug"),
    "KeyboardInterrupt": KeyboardInterrupt("a bug"),
    "SystemExit": SystemExit("a bug"),
    "RecursionError": RecursionError("a bug"),
    "UnicodeDecodeError": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a bug"),
    "OSError": OSError(5, "Input/output error"),
    "ExceptionGroup": ExceptionGroup("a bug", [ValueError("one"), KeyError("two")]),
    "Unprintable": Unprintable(),
    "Unpicklable": Unpicklable("a bug", Foreign()),
}


class Thrower(ScriptEngine):
    """Each segment is a line `say WORDS`, but for the first, which is `STEP KIND`, or `odd WHAT`."""

    name = "thrower"

    def _raise_in(self, step: str, order: str) -> None:
        wanted, _, kind = order.partition(" ")
        if wanted == step:
            raise KINDS[kind]

    def split(self, job: Job, document: Document) -> Sequence[Segment]:
        segments = super().split(job, document)
        self._raise_in("split", segments[0].content)
        if segments[0].content == "odd endless":
            return [Segment(0, 0.0, float("nan"), "say nothing")]
        if segments[0].content == "odd tensors":
            return [Segment(0, torch.tensor(0.0), torch.tensor(1.0), "say nothing")]  # type: ignore[arg-type]
        return segments

    def estimate_memory(self, segment: Segment) -> int:
        self._raise_in("estimate", str(segment.content))
        return 0

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        self._raise_in("prepare", segment.content)
        order = torch.frombuffer(bytearray(segment.content.encode()), dtype=torch.uint8)
        return {"length": torch.tensor([1.0]), "order": order}

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        for tensors in batch:
            self._raise_in("infer", bytes(tensors["order"].tolist()).decode())
        return super().infer(model, batch)

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        self._raise_in("finish", segment.content)
        if segment.content == "odd piece":
            return lambda: None  # cannot be pickled
        return super().finish(job, segment, output)

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        self._raise_in("join", segments[0].content)
        made = super().join(job, document, segments, pieces)
        if segments[0].content == "odd foreign":
            with contextlib.suppress(AttributeError):
                object.__setattr__(made, "warnings", (Foreign(),))
        return made
