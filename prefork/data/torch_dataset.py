"""A pipeline as torch knows data sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from prefork.data.options import PipelineOptions
from prefork.data.pipeline import Batch, DataPipeline


class SpeechDataset(IterableDataset[Batch]):
    """The batches of a `DataPipeline`, their `seqs` and `seq_lens` as tensors, page-locked where there is a GPU.

    For `DataLoader(dataset, batch_size=None, num_workers=0)`, or on its own: the workers are the pipeline's. It takes
    what `DataPipeline` takes. pin_memory: by default where CUDA is available.
    """

    def __init__(
        self,
        source: str | Path,
        options: PipelineOptions | None = None,
        *,
        workers: int | None = None,
        pin_memory: bool | None = None,
        **values: Any,
    ) -> None:
        self.pipeline = DataPipeline(source, options, workers=workers, **values)
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.pipeline:
            yield replace(batch, seqs=self._convert(batch.seqs), seq_lens=self._convert(batch.seq_lens))

    def _convert(self, array: Any) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._pin else tensor

    def state_dict(self) -> dict[str, int]:
        return self.pipeline.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.pipeline.load_state_dict(state)

    def close(self) -> None:
        self.pipeline.close()
