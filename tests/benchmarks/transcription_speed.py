"""`prefork transcribe` beside faster-whisper, in turn, in one run: python tests/benchmarks/transcription_speed.py

The 20 recordings of ../shared/data/speech (21 minutes) with whisper-tiny.en, word times on. prefork as a user types it
(--also adds rows with other options), faster-whisper as two processes of one thread each, which share the recordings
out by length: int8, greedy, word times. Both start from nothing each time; memory is the largest sum of PSS of all
processes, looked at five times a second. About five minutes on two cores.

faster-whisper lives in an environment of its own (--peer FOLDER, made if it is not there; uv makes it), which also
converts the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.audio.reader import probe
from tests.benchmarks.peak_memory import watch_memory
from tests.benchmarks.results import Results
from tests.benchmarks.transcription import SHARED, Score, list_recordings

SPEECH = SHARED / "data" / "speech"
TINY = SHARED / "models" / "whisper-tiny.en"
PEER = "faster-whisper==1.2.1"
_CONVERT = """
import shutil, sys
from ctranslate2.converters import TransformersConverter
TransformersConverter(sys.argv[1]).convert(sys.argv[2], quantization="float32")
for name in ("tokenizer.json", "preprocessor_config.json"):
    try:
        shutil.copyfile(f"{sys.argv[1]}/{name}", f"{sys.argv[2]}/{name}")
    except FileNotFoundError:
        pass
"""
_TRANSCRIBE = """
import json, sys, time
begin = time.perf_counter()
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type=sys.argv[2], cpu_threads=1)
loaded, first, words = time.perf_counter() - begin, None, {}
for path in sys.argv[3:]:
    segments, _ = model.transcribe(path, language="en", beam_size=1, word_timestamps=True)
    words[path] = []
    for segment in segments:
        first = first or time.perf_counter() - begin
        words[path] += [(word.word, word.start, word.end) for word in segment.words]
print(json.dumps({"load": loaded, "first": first, "words": words}))
"""

Words = dict[str, list[tuple[str, float, float]]]


@dataclass
class Way:
    """One way to transcribe, and what each of its runs took. words: of the last run, by recording."""

    name: str
    walls: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    words: Words = field(default_factory=dict)

    def describe(self, truths: dict[str, str], seconds: float, base: float) -> list[str]:
        score = Score()
        for name, truth in truths.items():
            score.add(truth, " ".join(text for text, _, _ in self.words[name]))
        every = [word for words in self.words.values() for word in words]
        wall, load = statistics.median(self.walls), statistics.median(self.loads)
        return [
            self.name,
            f"{seconds / wall:.1f}",
            f"{base / wall:.2f} x",
            f"{seconds / (wall - load):.1f}",
            f"{load:.1f}",
            f"{statistics.median(self.peaks) / 1e6:.0f}",
            f"{score.errors / score.words:.1%}",
            f"{len(every)} / {sum(end <= start for _, start, end in every)}",
        ]


def run_prefork(way: Way, model: str, options: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        command = [
            sys.executable,
            "-m",
            "prefork",
            "transcribe",
            SPEECH,
            name,
            "--model",
            model,
            "--format",
            "json",
            "--cache",
            "off",
        ]
        begin = time.perf_counter()
        whole = [*map(str, command), *options, "--json"]
        process = subprocess.Popen(whole, stdout=subprocess.PIPE, text=True)
        with watch_memory([process.pid]) as peak:
            out = process.communicate()[0]
        way.walls.append(time.perf_counter() - begin)
        summary = json.loads(out.splitlines()[-1])
        assert process.returncode == 0 and not summary["failed"], out
        way.loads.append(summary["load_seconds"])
        way.peaks.append(peak[0])
        for path in Path(name).glob("*.json"):
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            words = [word for utterance in content["utterances"] for word in utterance["words"]]
            way.words[path.stem] = [(word["text"], word["start"], word["end"]) for word in words]


def run_peer(way: Way, python: Path, folder: Path, compute: str, recordings: Sequence[Path]) -> None:
    """Two processes, each with half of the audio."""
    halves: list[list[Path]] = [[], []]
    sizes = [0.0, 0.0]
    for path in sorted(recordings, key=lambda path: probe(path).seconds, reverse=True):
        half = sizes.index(min(sizes))
        halves[half].append(path)
        sizes[half] += probe(path).seconds
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    begin = time.perf_counter()
    processes = [
        subprocess.Popen(
            [str(python), "-c", _TRANSCRIBE, str(folder), compute, *map(str, half)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for half in halves
    ]
    with watch_memory([process.pid for process in processes]) as peak:
        outputs = [json.loads(process.communicate()[0]) for process in processes]
    way.walls.append(time.perf_counter() - begin)
    way.loads.append(max(output["load"] for output in outputs))
    way.peaks.append(peak[0])
    for output in outputs:
        way.words |= {Path(path).stem: words for path, words in output["words"].items()}


def make_peer(folder: Path) -> Path:
    """The Python of an environment with faster-whisper, and what converts the weights."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run(["uv", "venv", "-q", "--python", sys.executable, folder], check=True)
        needed = [PEER, f"torch=={version('torch').partition('+')[0]}", f"transformers=={version('transformers')}"]
        subprocess.run(["uv", "pip", "install", "-q", "--python", python, *needed], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="an environment with faster-whisper")
    parser.add_argument("--also", nargs="*", default=[], metavar="OPTIONS", help="of prefork, a row for each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=str(TINY), help="of prefork")
    arguments = parser.parse_args()
    truths = {path.stem: truth for path, truth in list_recordings() if path.parent == SPEECH}
    recordings = [SPEECH / f"{name}.flac" for name in truths]
    seconds = sum(probe(path).seconds for path in recordings)
    with tempfile.TemporaryDirectory() as name, Results() as results:
        python = make_peer(arguments.peer or Path(name) / "peer")
        converted = Path(name) / "converted"
        subprocess.run([python, "-c", _CONVERT, TINY, converted], check=True, env=os.environ | {"PYTHONPATH": ""})
        peer = Way(f"{PEER} int8, two processes of one thread")
        own = {options: Way(f"prefork {options}".strip()) for options in ("", *arguments.also)}
        for _ in range(arguments.rounds):
            for options, way in own.items():
                run_prefork(way, arguments.model, shlex.split(options))
            run_peer(peer, python, converted, "int8", recordings)
        table = results.add_table(
            *("way", "audio s/s", "against the peer", "loading excluded", "load s", "PSS MB", "WER"),
            "words / of no length",
        )
        for way in (*own.values(), peer):
            table.add(*way.describe(truths, seconds, statistics.median(peer.walls)))
        results.note(f"medians of {arguments.rounds} runs in turn")


if __name__ == "__main__":
    main()
