"""Data sets as batches, for training and evaluation: read, shuffled, bucketed, decoded in forked workers.

    from prefork.data import DataPipeline

What is listed here is public, as in `prefork`. torch is imported by `SpeechDataset` alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefork.data.memory import MemoryPlan
    from prefork.data.options import PipelineOptions
    from prefork.data.pipeline import Batch, DataPipeline
    from prefork.data.torch_dataset import SpeechDataset

_HOMES = {
    "Batch": "prefork.data.pipeline",
    "DataPipeline": "prefork.data.pipeline",
    "MemoryPlan": "prefork.data.memory",
    "PipelineOptions": "prefork.data.options",
    "SpeechDataset": "prefork.data.torch_dataset",
}
__all__ = ["Batch", "DataPipeline", "MemoryPlan", "PipelineOptions", "SpeechDataset"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prefork.data' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
