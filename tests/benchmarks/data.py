"""Data sets as batches: python tests/benchmarks/data.py throughput | padding | memory

throughput: 2,000 utterances of a log-normal distribution (median 3 s, 0.3 to 28 s), cut from ../shared/data/speech and
packed as FLAC, or with --wav as WAV, are decoded and batched; no model. `torch` is torch's DataLoader with two workers
over the same file, in batches of 8: each worker reads its own row groups with pyarrow and decodes each recording with
the library that is named; or Hugging Face's datasets does both, where it is installed. `prefork` is `prefork.data` with
two workers, in batches of 8 and in LENGTH's. From the first batch to the last: starting workers is left out. Each in
turn, --rounds times; median, least and most.

padding: of LENGTH and STATIC batches of the 2,000 lengths of tests/benchmarks/batching.py, in random order, with the
default windows.

memory: a data set of --gigabytes (5) of WAV, made by repeating and removed afterwards, is read with an example window
of 10,000; the peak of all processes together (PSS, sampled 5 times a second) beside what `plan_memory` says before.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from prefork.data import DataPipeline
from prefork.data.memory import plan_memory
from prefork.data.pack import encode_flac
from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.engines.batching import measure_padding
from tests.benchmarks.batching import SPEECH, draw_lengths
from tests.benchmarks.peak_memory import watch_memory
from tests.benchmarks.results import Results
from tests.prefork.data_sets import make_wav

GROUP = 100  # rows of a row group
WINDOW = 10_000  # examples


def write_corpus(path: Path, wav: bool) -> list[int]:
    """Speech of realistic lengths; their samples."""
    speech = np.concatenate([read_audio(file, 0.0, 60.0) for file in sorted(SPEECH.glob("*.flac"))])
    chance = random.Random(1)
    lengths = draw_lengths(chance)
    recordings = []
    for length in lengths:
        start = chance.randrange(len(speech) - length)
        samples = speech[start : start + length]
        recordings.append(_encode_wav(samples) if wav else encode_flac(samples))
    table = pa.table({"audio": pa.array(recordings, pa.binary()), "audio_size": lengths, "text": ["x"] * len(lengths)})
    pq.write_table(table, path, row_group_size=GROUP, compression="none", use_dictionary=False)
    return lengths


def _encode_wav(samples: Any) -> bytes:
    data: bytes = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16).tobytes()
    return make_wav(0)[:40] + len(data).to_bytes(4, "little") + data


# -- torch's DataLoader, the ordinary way -----------------------------------------------------------------------------


def decode_with_av(data: bytes) -> Any:
    import av
    import torch

    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    samples = np.concatenate(frames, axis=1)[0]
    return torch.from_numpy(samples).float() / 32768


def decode_with_torchcodec(data: bytes) -> Any:
    decoders: Any = importlib.import_module("torchcodec.decoders")
    return decoders.AudioDecoder(data, sample_rate=SAMPLE_RATE, num_channels=1).get_all_samples().data[0]


def load_with_torch(path: Path, decode: Callable[[bytes], Any]) -> Iterator[tuple[Any, Any]]:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Rows(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            torch.set_num_threads(1)
            worker = get_worker_info()
            assert worker is not None
            with pq.ParquetFile(path) as file:
                for group in range(worker.id, file.num_row_groups, worker.num_workers):
                    for row in file.read_row_group(group, columns=["audio", "text"], use_threads=False).to_pylist():
                        yield decode(row["audio"])

    def collate(rows: list[Any]) -> tuple[Any, Any]:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])

    return iter(DataLoader(Rows(), batch_size=8, num_workers=2, collate_fn=collate))


def load_with_datasets(path: Path, cache: Path) -> Iterator[tuple[Any, Any]]:
    """As Hugging Face's datasets reads it: into an Arrow file first, and then by rows, decoded by torchcodec."""
    import torch
    from torch.utils.data import DataLoader

    datasets: Any = importlib.import_module("datasets")
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache))
    rows = rows.cast_column("audio", datasets.Audio(sampling_rate=SAMPLE_RATE))

    def collate(batch: list[Any]) -> tuple[Any, Any]:
        found = [row["audio"].get_all_samples().data[0] for row in batch]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True), torch.tensor([len(row) for row in found])

    return iter(DataLoader(rows, batch_size=8, num_workers=2, collate_fn=collate))


def load_with_prefork(path: Path, strategy: str) -> Iterator[tuple[Any, Any]]:
    with DataPipeline(path, workers=2, batching_strategy=strategy, batch_shuffle_window=1) as pipeline:
        for batch in pipeline:
            yield batch.seqs, batch.seq_lens


def measure_speed(batches: Iterator[tuple[Any, Any]], samples: int) -> tuple[float, float]:
    """Seconds of audio per second, from the first batch on, and per second of CPU time of all processes; all samples
    must come."""
    found, started, first = 0, 0.0, 0
    before: dict[int, float] = {}
    times: dict[int, tuple[float, int]] = {}  # by process: the last that was seen, and how many samples had come
    for number, (_, lengths) in enumerate(batches):
        if not started:
            before = _list_times()
            started, first = time.perf_counter(), int(lengths.sum())
        found += int(lengths.sum())
        if number % 4 == 0:
            times |= {pid: (seconds, found) for pid, seconds in _list_times().items()}
    seconds = time.perf_counter() - started
    assert found == samples, f"{found} samples of {samples}"
    last = max(seen for _, seen in times.values())
    used = sum(value - before.get(pid, 0.0) for pid, (value, _) in times.items())
    return (found - first) / SAMPLE_RATE / seconds, (last - first) / SAMPLE_RATE / used


def _list_times() -> dict[int, float]:
    """CPU seconds of this process and of all below it."""
    own = psutil.Process()
    found = {}
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            found[process.pid] = used.user + used.system
    return found


def compare_throughput(rounds: int, wav: bool, results: Results) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.parquet"
        samples = sum(write_corpus(path, wav))
        ways: dict[str, Callable[[], Iterator[tuple[Any, Any]]]] = {
            "torch, PyAV": lambda: load_with_torch(path, decode_with_av),
            "torch, torchcodec": lambda: load_with_torch(path, decode_with_torchcodec),
            "prefork, STATIC": lambda: load_with_prefork(path, "STATIC"),
            "prefork, LENGTH": lambda: load_with_prefork(path, "LENGTH"),
        }
        if importlib.util.find_spec("datasets") is not None:
            ways["torch, datasets"] = lambda: load_with_datasets(path, Path(folder) / "cache")
        else:
            results.note("without Hugging Face's datasets, which is not installed")
        speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, make in ways.items():
                speeds[name].append(measure_speed(make(), samples))
        title = (
            f"{samples / SAMPLE_RATE / 3600:.1f} h of {'WAV' if wav else 'FLAC'}, {path.stat().st_size / 1e6:.0f} MB"
        )
        columns = ("loader", "audio seconds per second", "least", "most", "per CPU second", "to the best of torch")
        table = results.add_table(*columns, title=title)
        medians = {
            name: [statistics.median(values) for values in zip(*found, strict=True)] for name, found in speeds.items()
        }
        best = [max(values[place] for name, values in medians.items() if name.startswith("torch")) for place in (0, 1)]
        for name, found in speeds.items():
            speed, effort = medians[name]
            least, most = min(speed for speed, _ in found), max(speed for speed, _ in found)
            ratios = f"{speed / best[0]:.2f}; {effort / best[1]:.2f}"
            table.add(name, f"{speed:,.0f}", f"{least:,.0f}", f"{most:,.0f}", f"{effort:,.0f}", ratios)


# -- padding, memory --------------------------------------------------------------------------------------------------


def compare_padding(results: Results) -> None:
    lengths = draw_lengths(random.Random(1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.parquet"
        table = pa.table({"audio": pa.array([b"x"] * len(lengths), pa.binary()), "audio_size": lengths})
        pq.write_table(table, path, row_group_size=GROUP)
        shown = results.add_table("strategy", "example window", "batches", "padding", title="padded / all elements")
        for window in (1, 1000):
            for strategy in ("LENGTH", "STATIC"):
                values: dict[str, Any] = {"batching_strategy": strategy, "example_shuffle_window": window}
                for most in (3_200_000, 1_600_000) if strategy == "LENGTH" else (3_200_000,):
                    pipeline = DataPipeline(path, max_audio_len=480_000, max_num_elements=most, **values)
                    batches = list(pipeline.list_batches())
                    name = f"{strategy}, {most:,}" if strategy == "LENGTH" else strategy
                    shown.add(name, f"{window:,}", f"{len(batches)}", f"{measure_padding(batches):.1%}")


def write_large(path: Path, gigabytes: float) -> int:
    """WAV of 1 to 20 s, speech repeated; the bytes."""
    speech = np.concatenate([read_audio(file, 0.0, 60.0) for file in sorted(SPEECH.glob("*.flac"))])
    chance = random.Random(2)
    schema = pa.schema([("audio", pa.binary()), ("audio_size", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        while not path.exists() or path.stat().st_size < gigabytes * 1e9:
            lengths = [chance.randrange(SAMPLE_RATE, 20 * SAMPLE_RATE) for _ in range(GROUP)]
            starts = [chance.randrange(len(speech) - length) for length in lengths]
            rows = [_encode_wav(speech[start : start + length]) for start, length in zip(starts, lengths, strict=True)]
            writer.write_table(pa.table({"audio": rows, "audio_size": lengths}, schema=schema))
    return path.stat().st_size


def compare_memory(gigabytes: float, results: Results) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.parquet"
        size = write_large(path, gigabytes)
        with DataPipeline(path, workers=2, example_shuffle_window=WINDOW, batch_shuffle_window=20) as pipeline:
            plan = plan_memory(pipeline)
            started = time.perf_counter()
            with watch_memory([os.getpid()]) as peak:
                rows = sum(len(batch.seq_lens) for batch in pipeline)
            seconds = time.perf_counter() - started
        table = results.add_table("what", "MB", title=f"{size / 1e9:.1f} GB, {rows:,} rows, read in {seconds:.0f} s")
        for name in ("waiting", "loading", "decoded", "processes", "total"):
            table.add(f"plan: {name}", f"{getattr(plan, name) / 1e6:,.0f}")
        table.add("peak of all processes", f"{peak[0] / 1e6:,.0f}")
        results.note(f"peak / plan: {peak[0] / plan.total:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "padding", "memory"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wav", action="store_true")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    arguments = parser.parse_args()
    with Results() as results:
        if arguments.what == "throughput":
            compare_throughput(arguments.rounds, arguments.wav, results)
        elif arguments.what == "padding":
            compare_padding(results)
        else:
            compare_memory(arguments.gigabytes, results)


if __name__ == "__main__":
    main()
