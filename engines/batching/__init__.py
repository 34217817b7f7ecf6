"""Which segments go through the model together: fairseq2's and omnilingual-asr's batching, for streams and data sets.

A batch of segments of unequal length is padded to its longest, so it takes as much memory and work as its count times
its longest. STATIC batches have a fixed count, and memory must suffice for that many of the longest. LENGTH batches
have a fixed number of padded elements, and so hold many short segments or few long ones. An element is a sample at
16 kHz, for every model.

Sources: fairseq2's `create_bucket_sizes` and `DataPipelineBuilder.bucket_by_length`, whose semantics are in
`bucket_by_length_data_source.cc`; omnilingual-asr's `datasets/utils/batching.py` and `AsrTaskConfig`
(`datasets/tasks/asr_task.py`). Names are theirs.

Pure: no torch, no clock. What comes out depends only on the calls.
"""

from __future__ import annotations

from prefork.engines.batching.batcher import EMPTINESS, Batcher
from prefork.engines.batching.buckets import create_bucket_sizes
from prefork.engines.batching.datasets import batch_by_length, measure_padding
from prefork.engines.batching.settings import ELEMENTS_PER_GIGABYTE, GIGABYTE, Batching, BatchingStrategy

__all__ = [
    "ELEMENTS_PER_GIGABYTE",
    "EMPTINESS",
    "GIGABYTE",
    "Batcher",
    "Batching",
    "BatchingStrategy",
    "batch_by_length",
    "create_bucket_sizes",
    "measure_padding",
]
