"""How exact and how fast Whisper's forced alignment is, beside that of the CTC aligner:
python tests/benchmarks/whisper_alignment.py [--model PATH] [--threads N] [--lag SECONDS]

Accuracy: word starts and ends against the times of the synthesiser that spoke ../shared/data/aligned-tts, from
transcripts without times. Speed: the seconds of it, and the most private memory that the engine had beside its weights.
Each engine runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.alignment.forced_aligner import ForcedAligner
from prefork.engines.audio.reader import probe
from prefork.engines.base import Job
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.text.document import Document, Utterance, Word
from prefork.engines.whisper.aligner import WhisperAligner
from tests.benchmarks.results import Results

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TINY = SHARED / "models" / "whisper-tiny.en"


class PeakMemory(threading.Thread):
    """The most private memory of this process while it runs, bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._over = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self._over.wait(0.02):
            self.peak = max(self.peak, process.memory_full_info().uss)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.peak


@torch.inference_mode()
def align(engine: ForcedAligner, model: Any, job: Job, document: Document) -> Document:
    segments = engine.split(job, document)
    outputs = [engine.infer(model, [engine.prepare(job, segment)])[0] for segment in segments]
    pieces = [engine.finish(job, *pair) for pair in zip(segments, outputs, strict=True)]
    return engine.join(job, document, segments, pieces)


def measure(engine: ForcedAligner, lag: float) -> None:
    folder = SHARED / "data" / "aligned-tts"
    engine.setup()
    model = engine.load()
    if isinstance(engine, WhisperAligner) and lag:
        own = engine._checkpoint
        engine._checkpoint = replace(own, config=replace(own.config, start_offset_seconds=-lag))
    before = psutil.Process().memory_full_info().uss
    memory = PeakMemory()
    memory.start()
    with torch.inference_mode():
        example = engine.example()
        assert example is not None
        engine.verify(engine.infer(model, [example])[0])
    begin = time.perf_counter()
    found: list[tuple[Any, Word]] = []
    seconds = 0.0
    for name, truth in sorted(json.loads((folder / "words.json").read_text(encoding="utf-8")).items()):
        media = folder / f"{name}.flac"
        job = Job(name, media, media, seconds=probe(media).seconds)
        words = tuple(Word(word["word"]) for word in truth)
        document = align(engine, model, job, Document((Utterance(" ".join(word.text for word in words), words),)))
        found += zip(truth, document.utterances[0].words, strict=True)
        seconds += job.seconds
    wall = time.perf_counter() - begin
    for edge in ("start", "end"):
        errors = np.array([getattr(word, edge) - truth[edge] for truth, word in found]) * 1000
        sizes = np.abs(errors)
        print(
            f"{engine.name}, {edge}s: {len(sizes)} words, median error {np.median(sizes):.0f} ms, "
            f"{np.mean(sizes <= 50):.1%} within 50 ms, {np.mean(sizes <= 100):.1%} within 100 ms, "
            f"worst {sizes.max():.0f} ms, bias {np.median(errors):+.0f} ms"
        )
    print(
        f"{engine.name}: {seconds:.0f} s of audio in {wall:.1f} s: {seconds / wall:.1f} times as fast; "
        f"private memory {before >> 20} MiB before, at most {(memory.stop() - before) >> 20} MiB more"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY), help="folder or hub id of a Whisper checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lag", type=float, default=0.0, metavar="SECONDS", help="by which Whisper is late")
    parser.add_argument("--only", choices=("ctc", "whisper"))
    arguments = parser.parse_args()
    if arguments.only is None:
        with Results() as results:
            for engine in ("ctc", "whisper"):
                command = [sys.executable, *sys.argv, "--only", engine]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                for line in done.stdout.splitlines():
                    results.note(line)
        return
    torch.set_num_threads(arguments.threads)
    measure(CTCAligner() if arguments.only == "ctc" else WhisperAligner(arguments.model), arguments.lag)


if __name__ == "__main__":
    main()
