"""A data set as an iterable of batches, decoded in forked workers.

    this process: order, fragments read ahead, rows that wait          workers: decoding, padding
    Example -> bytes, sent in shared memory                        ->  (rows, samples), handed back in shared memory

Rows wait as the bytes that they are in the data set. What the pipeline does at a position depends on the options and
the data set alone, not on the number of workers; so a position is two numbers, and resuming computes the order anew,
without reading what has been handed out.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefork.data.decoding import Decoded, decode_batch, pad
from prefork.data.fragments import (
    ChosenRows,
    DataSet,
    Fragment,
    Row,
    choose_fragment,
    load_rows,
    measure_group,
    open_data_set,
)
from prefork.data.options import PipelineOptions
from prefork.data.order import Example, order_batches, split_partitions
from prefork.engines.base import InputError
from prefork.engines.parquet.data_set import DataFile
from prefork.engines.parquet.row_path import RowAddress
from prefork.errors import OutOfMemory, WorkerDied
from prefork.platform_matrix.facts import count_usable_cores
from prefork.pool.runtime import Runtime

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray


_logger = logging.getLogger("prefork")


@dataclass(frozen=True, slots=True)
class Batch:
    """seqs: (rows, samples) float32 at 16 kHz, padded with zeros. seq_lens: (rows,) samples. texts, ids: of the rows;
    None where the data set has none. paths: of the rows, below their files. errors: by path, rows of this batch that
    could not be decoded and are in none of these."""

    seqs: Any
    seq_lens: Any
    texts: tuple[str | None, ...]
    ids: tuple[str | None, ...]
    paths: tuple[str, ...]
    errors: Mapping[str, str]

    @property
    def padding(self) -> float:
        """Padded elements / all elements."""
        whole = self.seqs.shape[0] * self.seqs.shape[1]
        return 1.0 - float(self.seq_lens.sum()) / whole if whole else 0.0


class _Waiting(NamedTuple):
    """A batch that is being decoded."""

    future: Future[Decoded]
    content: NDArray[np.uint8]
    sizes: Sequence[int]
    rows: Sequence[Row]
    paths: Sequence[str]


class DataPipeline:
    """The batches of a data set.

    >>> with DataPipeline("corpus", split="train", workers=2, example_shuffle_window=10_000) as pipeline:
    ...     for batch in pipeline:                    # its epochs, one after the other
    ...         train(batch.seqs, batch.seq_lens, batch.texts)
    ...         state = pipeline.state_dict()         # of what has been handed out

    source: a parquet file or a folder of them. workers: processes that decode; by default one for each core that may
    be used. options: those of `PipelineOptions`, or one of them.

    Raises InputError for a data set that cannot be used, ValueError for options that cannot be.
    """

    def __init__(
        self, source: str | Path, options: PipelineOptions | None = None, *, workers: int | None = None, **values: Any
    ) -> None:
        self.source = Path(source)
        self.options = (options or PipelineOptions()).replace(**values) if values else options or PipelineOptions()
        self.workers = workers or count_usable_cores()
        self._runtime: Runtime | None = None
        self._chosen: dict[int, ChosenRows] = {}  # by fragment
        self._epoch = self._batches = 0
        self._pid = os.getpid()
        self.data_set: DataSet = open_data_set(self.source, self.options)
        for warning in self.options.list_warnings():
            _logger.warning(warning)
        for name, reason in self.data_set.problems.items():
            _logger.warning("%s: %s; the other files are used", name, reason)
        for name in ("example_shuffle_window", "batch_shuffle_window"):
            if getattr(self.options, name) == 0:
                size = sum(fragment.audio_bytes for fragment in self.data_set.fragments)
                _logger.warning(
                    "`%s` is 0: the whole data set waits in memory before the first batch, %.1f GB; a window of 10000 "
                    "takes less",
                    name,
                    size / 1e9,
                )
        for _, fragments in split_partitions(self.data_set.fragments, self.options):
            if self.options.world_size > len(fragments):
                raise InputError(
                    f"{self.source}: `world_size` must be at most the number of fragments ({len(fragments)}), but is "
                    f"{self.options.world_size} instead: write smaller row groups, or use fewer processes"
                )

    # -- position ----------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The one that is under way, from 0."""
        return self._epoch

    def state_dict(self) -> dict[str, int]:
        """The position: epochs and batches of this one that have been handed out, and what the order was made of."""
        return {"epoch": self._epoch, "batches": self._batches, "order": self._digest()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from there when it is iterated next. Raises ValueError if the data set or an option is another."""
        if state.get("order") != self._digest():
            raise ValueError(
                "this state is of another data set, or of other options; give those that made it, or start anew"
            )
        self._epoch, self._batches = int(state["epoch"]), int(state["batches"])

    def reset(self) -> None:
        """Back to the beginning."""
        self._epoch = self._batches = 0

    def _digest(self) -> int:
        """32 bits of all that the order depends on."""
        files = [(f.file.name, f.number, f.groups, f.file.state.size) for f in self.data_set.fragments]
        return zlib.crc32(json.dumps([files, self.options.describe()], sort_keys=True, default=str).encode())

    # -- iteration ---------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """From the position on, to the end of the last epoch; what comes after that begins anew."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this pipeline belongs to another process, which has forked this one: its workers decode already, so "
                "give torch's DataLoader num_workers=0"
            )
        while self.options.epochs is None or self._epoch < self.options.epochs:
            yield from self._iterate_epoch()
            self._epoch, self._batches = self._epoch + 1, 0
        self._epoch = 0

    def _iterate_epoch(self) -> Iterator[Batch]:
        reader = _EpochReader(self, self._epoch, self._batches)
        ahead = max(1, self.options.num_prefetch)
        waiting: deque[_Waiting] = deque()
        count = 0
        try:
            for rows in reader.read():
                count += 1
                waiting.append(self._submit(rows))
                if len(waiting) >= ahead:
                    yield from self._hand_out(waiting.popleft())
            while waiting:
                yield from self._hand_out(waiting.popleft())
            if not count and not self._batches:
                raise InputError(
                    f"{self.source}: none of its {sum(f.rows for f in self.data_set.fragments)} rows passes; check "
                    "min_audio_len, max_audio_len and where"
                )
        finally:
            reader.close()
            for left in waiting:
                left.future.cancel()

    def _submit(self, rows: Sequence[tuple[Fragment, Row]]) -> _Waiting:
        sizes = [-1 if row.content is None else len(row.content) for _, row in rows]
        content = np.empty(sum(max(0, size) for size in sizes), np.uint8)
        start = 0
        for _, row in rows:
            if row.content is not None:
                content[start : start + len(row.content)] = np.frombuffer(row.content, np.uint8)
                start += len(row.content)
        paths = [str(_find_path(fragment.file, row)) for fragment, row in rows]
        future = self.runtime.submit(decode_batch, content, sizes, paths)
        return _Waiting(future, content, sizes, [row._replace(content=None) for _, row in rows], paths)

    def _hand_out(self, waiting: _Waiting) -> Iterator[Batch]:
        """The batch, unless nothing of it could be decoded; either way the position is behind it."""
        try:
            decoded = waiting.future.result()
        except (WorkerDied, OutOfMemory):
            decoded = self._decode_apart(waiting)
        self._batches += 1
        errors = {waiting.paths[place]: reason for place, reason in decoded.errors.items()}
        for path, reason in errors.items():
            _logger.warning("%s is left out: %s", path, reason)
        kept = [place for place in range(len(waiting.rows)) if place not in decoded.errors]
        if kept:
            yield Batch(
                decoded.seqs,
                decoded.seq_lens,
                tuple(waiting.rows[place].text for place in kept),
                tuple(waiting.rows[place].id for place in kept),
                tuple(waiting.paths[place] for place in kept),
                errors,
            )

    def _decode_apart(self, waiting: _Waiting) -> Decoded:
        """A row that ends its worker costs no other."""
        found: list[NDArray[np.float32]] = []
        errors: dict[int, str] = {}
        start = 0
        for place, (size, path) in enumerate(zip(waiting.sizes, waiting.paths, strict=True)):
            end = start + max(0, size)
            try:
                one = self.runtime.submit(decode_batch, waiting.content[start:end], [size], [path]).result()
                found += list(one.seqs)
                errors |= dict.fromkeys((place,) * len(one.errors), "".join(one.errors.values()))
            except (WorkerDied, OutOfMemory) as error:
                errors[place] = str(error)
            start = end
        decoded = pad(found, errors)
        return decoded._replace(seqs=decoded.seqs.copy())

    @property
    def runtime(self) -> Runtime:
        """The workers; they are started when they are needed first."""
        if self._runtime is None:
            self._runtime = Runtime(workers=self.workers, force_cpu=True, command="data")
        return self._runtime

    def choose(self, fragment: Fragment) -> ChosenRows:
        """The rows of a fragment that pass; small columns are read for it, once."""
        if fragment.number not in self._chosen:
            self._chosen[fragment.number] = choose_fragment(fragment, self.options, self._measure)
        return self._chosen[fragment.number]

    def take_choices(self, other: DataPipeline) -> None:
        """What another pipeline over the same rows has found out need not be read again."""
        self._chosen = other._chosen

    def _measure(self, file: DataFile, group: int) -> Sequence[int | None]:
        return self.runtime.submit(measure_group, file.narrow(group), group).result()

    def list_batches(self, epoch: int = 0) -> Iterator[list[int]]:
        """The lengths of an epoch's batches, in their order. No recording is read."""

        def read(fragments: Iterator[Fragment]) -> Iterator[tuple[int, ChosenRows]]:
            for number, fragment in enumerate(fragments):
                yield number, self.choose(fragment)

        for batch in order_batches(self.data_set.fragments, self.options, epoch, read):
            yield [example.length for example in batch]

    def close(self) -> None:
        """Ends the workers."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.shutdown(cancel_futures=True)

    def __enter__(self) -> DataPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _EpochReader:
    """The batches of an epoch with their bytes. Of those that were handed out before, nothing is read."""

    def __init__(self, pipeline: DataPipeline, epoch: int, skipped: int) -> None:
        self._pipeline = pipeline
        self._epoch = epoch
        self._skipped = skipped
        self._is_skipping = skipped > 0
        self._numbers = itertools.count()
        self._fragments: dict[int, tuple[Fragment, ChosenRows]] = {}  # by reading: those with rows that wait
        self._held: dict[int, dict[tuple[int, int], Row]] = {}
        self._left: dict[int, int] = {}  # by reading: rows that have not gone out
        self._gone: dict[int, set[int]] = {}  # by reading: places of rows that were handed out before
        self._threads = ThreadPoolExecutor(pipeline.options.num_parallel_fragments, "prefork-fragments")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def read(self) -> Iterator[list[tuple[Fragment, Row]]]:
        pipeline = self._pipeline
        batches = order_batches(pipeline.data_set.fragments, pipeline.options, self._epoch, self._read)
        for number, batch in enumerate(batches):
            if number == self._skipped and self._is_skipping:
                self._catch_up()
            if self._is_skipping:
                self._forget(batch)
            else:
                yield [self._take(example) for example in batch]

    def _read(self, fragments: Iterator[Fragment]) -> Iterator[tuple[int, ChosenRows]]:
        """In their order, some ahead."""
        options = self._pipeline.options
        ahead: deque[tuple[Fragment, ChosenRows, Future[dict[tuple[int, int], Row]] | None]] = deque()
        while True:
            while len(ahead) < options.nb_prefetch + options.num_parallel_fragments:
                fragment = next(fragments, None)
                if fragment is None:
                    break
                chosen = self._pipeline.choose(fragment)
                future = None if self._is_skipping else self._load(fragment, chosen.places)
                ahead.append((fragment, chosen, future))
            if not ahead:
                return
            fragment, chosen, future = ahead.popleft()
            if not chosen.places:
                continue
            reading = next(self._numbers)
            self._fragments[reading] = fragment, chosen
            self._left[reading] = len(chosen.places)
            if not self._is_skipping:
                self._held[reading] = (future or self._load(fragment, chosen.places)).result()
            del future
            yield reading, chosen

    def _load(self, fragment: Fragment, places: Sequence[tuple[int, int]]) -> Future[dict[tuple[int, int], Row]]:
        return self._threads.submit(load_rows, fragment, places, self._pipeline.options.use_threads)

    def _take(self, example: Example) -> tuple[Fragment, Row]:
        fragment, chosen = self._fragments[example.reading]
        row = self._held[example.reading].pop(chosen.places[example.place])
        self._count_down(example.reading)
        return fragment, row

    def _forget(self, batch: Sequence[Example]) -> None:
        for example in batch:
            self._gone.setdefault(example.reading, set()).add(example.place)
            self._count_down(example.reading)

    def _count_down(self, reading: int) -> None:
        self._left[reading] -= 1
        if not self._left[reading]:
            del self._left[reading], self._fragments[reading]
            self._held.pop(reading, None)
            self._gone.pop(reading, None)

    def _catch_up(self) -> None:
        """The skipped batches are over: reads the rows that wait beyond them."""
        self._is_skipping = False
        for reading, (fragment, chosen) in self._fragments.items():
            gone = self._gone.pop(reading, set())
            left = [place for number, place in enumerate(chosen.places) if number not in gone]
            self._held[reading] = load_rows(fragment, left, self._pipeline.options.use_threads)


def _find_path(file: DataFile, row: Row) -> Path:
    return RowAddress(file.path, file.columns.audio, row.group, row.number).path
