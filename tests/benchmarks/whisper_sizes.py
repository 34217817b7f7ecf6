"""Whisper models of the sizes that people use, with random weights: python tests/benchmarks/whisper_sizes.py [NAME ...]

For each data type, on one thread: seconds for the encoder's pass over a window of 30 s and for a token, medians; and
what four forked workers take in all after they have aligned noise. What the weights are decides nothing of that but how
many tokens are written. small: 0.2 billion weights; large-v3-turbo: 0.8, 1.6 GB on disk while it runs.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork import Runtime
from prefork.engines.checkpoints.model_folder import INCLUDED, build_empty
from prefork.engines.checkpoints.whisper_layers import list_sources
from prefork.engines.whisper.asr import WhisperASR
from prefork.engines.whisper.network import TokenCache, WhisperConfig, WhisperNetwork
from prefork.memory.probe import measure_memory
from prefork.pool.pipeline import Stage
from tests.benchmarks.results import Results
from tests.benchmarks.runtime import write_jobs

_VOCABULARY = 51864  # of the included model, whose tokenizer they get
SIZES = {
    "small": WhisperConfig(
        vocab_size=_VOCABULARY, d_model=768, encoder_layers=12, encoder_attention_heads=12, encoder_ffn_dim=3072,
        decoder_layers=12, decoder_attention_heads=12, decoder_ffn_dim=3072,
    ),
    "large-v3-turbo": WhisperConfig(
        vocab_size=_VOCABULARY, num_mel_bins=128, d_model=1280, encoder_layers=32, encoder_attention_heads=20,
        encoder_ffn_dim=5120, decoder_layers=4, decoder_attention_heads=20, decoder_ffn_dim=5120,
    ),
}  # fmt: skip
_TOKENS = 40
_WORKERS = 4


def write_model(config: WhisperConfig, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(INCLUDED["tiny.en"] / name, folder / name)
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**generation, "alignment_heads": [[0, 0]]}))
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": config.num_mel_bins}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    torch.manual_seed(0)
    tensors = {}
    for name, parameter in build_empty(WhisperNetwork, config).named_parameters():
        sources = list_sources(name)
        shape = (parameter.shape[0] // len(sources), *parameter.shape[1:])
        for source in filter(None, sources):
            own = source if source.startswith("proj_out") else f"model.{source}"
            tensors[own] = (torch.randn(shape) * 0.02).half()
    save_file(tensors, folder / "model.safetensors")


@torch.inference_mode()
def measure_speed(folder: Path, dtype: str) -> tuple[float, float, int]:
    """Seconds of a pass of the encoder, and for a token; bytes of the weights."""
    engine = WhisperASR(str(folder), dtype)
    engine.setup()
    network = engine.load()
    config = engine._checkpoint.config
    features = torch.randn(1, config.num_mel_bins, 3000)
    passes, tokens = [], []
    for _ in range(3):
        begin = time.perf_counter()
        states = network.encoder(features)
        passes.append(time.perf_counter() - begin)
    sound, cache = network.decoder.remember(list(states)), TokenCache()
    for token in range(_TOKENS):
        begin = time.perf_counter()
        hidden, _ = network.decoder(torch.tensor([[token]]), sound, cache)
        network.decoder.project(hidden)
        tokens.append(time.perf_counter() - begin)
    return statistics.median(passes), statistics.median(tokens), engine.count_weights()


def measure_workers(folder: Path, dtype: str) -> tuple[int, int]:
    """PSS of the zygote and four workers that have aligned something, and the median of what is a worker's own; bytes.
    To transcribe takes as much, but random weights write all tokens there may be at all temperatures."""
    pipeline = (Stage("whisper-aligner", {"model": str(folder), "dtype": dtype}),)
    with tempfile.TemporaryDirectory() as name:
        jobs = write_jobs(Path(name), 2 * _WORKERS, 20.0)
        with Runtime(pipeline, workers=_WORKERS, threads=1, strategy="fork") as runtime:
            while sum(worker.ready_seconds is not None for worker in runtime.supervisor.status()) < _WORKERS:
                time.sleep(0.2)
            failed = [result.error for result in runtime.map(jobs) if result.error is not None]
            assert not failed, failed
            pids = [worker.pid for worker in runtime.supervisor.status()]
            zygote = runtime.supervisor.zygote_pid()
            found = [memory for memory in map(measure_memory, [*pids, *([zygote] if zygote else [])]) if memory]
    return sum(memory.pss for memory in found), round(statistics.median(memory.uss for memory in found[:-1]))


def main() -> None:
    names = sys.argv[1:] or list(SIZES)
    torch.set_num_threads(1)
    with Results() as results:
        table = results.add_table(
            *("model", "dtype", "weights MB", "encoder s", "token ms", "4 workers, PSS MB"), "a worker's own MB"
        )
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                write_model(SIZES[name], Path(folder))
                for dtype in ("float32", "int8"):
                    encoder, token, weights = measure_speed(Path(folder), dtype)
                    total, own = measure_workers(Path(folder), dtype)
                    sizes = f"{weights / 1e6:.0f}", f"{encoder:.2f}", f"{token * 1e3:.1f}"
                    table.add(name, dtype, *sizes, f"{total / 1e6:.0f}", f"{own / 1e6:.0f}")


if __name__ == "__main__":
    main()
