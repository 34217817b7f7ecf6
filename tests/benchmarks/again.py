"""How far `align` moves words of its own output: python tests/benchmarks/again.py [--recordings N] [--times N]

../shared/data/speech, transcripts with times; each output is aligned again. Also for how many
seconds the model hears these recordings.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.audio.reader import probe
from prefork.engines.base import Job
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.text import formats
from tests.benchmarks.accuracy import SHARED, Stopwatch, align
from tests.benchmarks.results import Results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=20)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = CTCAligner()
    engine.setup()
    model = engine.load()
    moved, words, heard, recorded = [0] * arguments.times, 0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder, Results() as results:
        for source in sorted((SHARED / "data" / "speech").glob("*.cha"))[: arguments.recordings]:
            media, copy = source.with_suffix(".flac"), Path(folder) / source.name
            copy.write_bytes(source.read_bytes())
            job = Job(source.name, copy, media, seconds=probe(media).seconds)
            recorded += job.seconds
            heard += sum(segment.seconds for segment in engine.split(job, formats.read(copy)))
            before: list[tuple[float | None, float | None]] = []
            for time in range(arguments.times + 1):
                document = align(engine, model, job, Stopwatch())
                times = [(word.start, word.end) for utterance in document.utterances for word in utterance.words]
                if time:
                    moved[time - 1] += sum(a != b for a, b in zip(before, times, strict=True))
                before = times
                copy.write_text(formats.render(document, "chat"), encoding="utf-8")
            words += len(before)
        listed = ", ".join(map(str, moved))
        results.note(f"{words} words of {recorded:.0f} s; moved when aligned again, time by time: {listed}")
        results.note(f"the model hears {heard:.0f} s")


if __name__ == "__main__":
    main()
