"""An engine whose model asks CUDA something, as transformers' do in every forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from prefork.engines.base import LoadError, Tensors

if TYPE_CHECKING:
    from tests.data.script_engine.script_engine import ScriptEngine
else:
    from script_engine import ScriptEngine


class Tracing(ScriptEngine):
    """With fail="verify", its model is not what it says."""

    name = "tracing"

    def example(self) -> Tensors:
        return {"length": torch.tensor([1.0])}

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        with contextlib.suppress(RuntimeError):  # there is no GPU
            torch.cuda.is_current_stream_capturing()
        return super().infer(model, batch)

    def verify(self, output: Tensors) -> None:
        if self.fail == "verify":
            raise LoadError("tracing: its model says something else; take another")
