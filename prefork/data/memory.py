"""How much memory a pipeline takes, found out without reading a recording: its order is known, and so is what waits."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass

import numpy as np

from prefork.data.decoding import decode_batch
from prefork.data.fragments import ChosenRows, Fragment
from prefork.data.order import order_batches
from prefork.data.pipeline import DataPipeline
from prefork.engines.base import InputError
from prefork.engines.parquet.rows import SLICE_BYTES
from prefork.memory.probe import measure_memory
from prefork.pool.runtime import Runtime

ROW_BYTES = 600  # what a row that waits takes besides its recording
SAMPLE_BYTES = 4  # float32
_STARTING_SECONDS = 10.0  # for all workers


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes, of all processes together, at the most. waiting: rows in windows and buckets, as they are in the data set.
    loading: fragments that are read, or were read ahead. decoded: batches that were decoded ahead, and those under
    way. processes: this one and its workers, before they do anything."""

    waiting: int
    loading: int
    decoded: int
    processes: int

    @property
    def total(self) -> int:
        return self.waiting + self.loading + self.decoded + self.processes


def plan_memory(pipeline: DataPipeline, *, processes: int | None = None) -> MemoryPlan:
    """For the epoch that the pipeline is at. Reads the column of lengths, and starts the workers if they are to be
    measured. processes: their bytes, if they are known. Raises InputError."""
    options, fragments = pipeline.options, pipeline.data_set.fragments
    held = most = widest = wide = 0
    density: dict[int, float] = {}  # bytes for a sample, by reading

    def read(order: Iterator[Fragment]) -> Iterator[tuple[int, ChosenRows]]:
        nonlocal held, most
        for number, fragment in enumerate(order):
            chosen = pipeline.choose(fragment)
            if not chosen.places:
                continue
            size = fragment.audio_bytes * len(chosen.places) / max(1, fragment.rows)
            density[number] = size / max(1, sum(chosen.lengths))
            held += round(size) + ROW_BYTES * len(chosen.places)
            most = max(most, held)
            yield number, chosen

    for batch in order_batches(fragments, options, pipeline.epoch, read):
        encoded = sum(example.length * density[example.reading] for example in batch)
        held -= round(encoded) + ROW_BYTES * len(batch)
        wide = max(wide, len(batch) * max(example.length for example in batch) * SAMPLE_BYTES)
        widest = max(widest, round(encoded))
    if not most:
        raise InputError(f"{pipeline.source}: none of its rows passes the filters")
    if processes is None:
        processes = _measure_processes(pipeline.runtime)
    ahead = options.nb_prefetch + options.num_parallel_fragments - 1
    loading = ahead * max(fragment.audio_bytes for fragment in fragments)
    slices = options.num_parallel_fragments * min(SLICE_BYTES, max(fragment.audio_bytes for fragment in fragments))
    batches = max(1, options.num_prefetch) + 1
    workers = pipeline.workers
    # Of each batch its recordings and its block, here; in a worker also what it decodes and pads.
    decoded = batches * (2 * widest + wide) + 2 * workers * wide
    return MemoryPlan(most, loading + slices, decoded, processes)


def _measure_processes(runtime: Runtime) -> int:
    """Once each worker has done something."""
    empty = np.zeros(0, np.uint8)
    wait([runtime.submit(decode_batch, empty, [], []) for _ in range(2 * runtime.plan.workers)])
    deadline = time.monotonic() + _STARTING_SECONDS
    while len(runtime.supervisor.status()) < runtime.plan.workers and time.monotonic() < deadline:
        time.sleep(0.01)
    pids = [os.getpid(), *runtime.supervisor.list_pids().values()]
    return sum(memory.pss for pid in pids if (memory := measure_memory(pid)) is not None)
