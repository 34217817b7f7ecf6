"""What the result cache costs and saves: `python tests/benchmarks/result_cache.py [NAME ...]`.

20 recordings of ../shared/data/speech and the 200 transcripts of `morphotag.py` go through commands as a user types
them: without the cache, computing all and keeping it, again into a new folder, and with one word of one transcript
changed. Processor time is that of all processes; it ends with an error if any outputs differ. Names: align,
transcribe, morphotag.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.morphotag import write_corpus  # noqa: E402
from tests.benchmarks.results import Results  # noqa: E402
from tests.prefork.command import PREFORK, read_outputs  # noqa: E402

SHARED = ROOT.parent / "shared"
RECORDINGS = 20
OPTIONS = {
    "align": ["--format", "chat,json"],
    "transcribe": ["--model", str(SHARED / "models" / "whisper-tiny.en")],
    "morphotag": [],
}


@dataclass(frozen=True)
class Timed:
    """seconds: of the clock, and of processors. found: what the table at the end says of the cache."""

    seconds: float
    processor: float
    found: str


def compute(command: str, source: Path, target: Path, mode: str) -> Timed:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    words = [*PREFORK, command, str(source), str(target), *OPTIONS[command], "--cache", mode, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads(done.stdout.splitlines()[-1])
    parts = [f"{summary['kept_files']} of {summary['done']} files"]
    parts += [f"{summary['kept_segments']} of {summary['segments']} segments"] if summary["segments"] else []
    return Timed(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ", ".join(parts))


def write_recordings(folder: Path) -> None:
    folder.mkdir()
    for path in sorted((SHARED / "data" / "speech").glob("*.flac"))[:RECORDINGS]:
        for one in (path, path.with_suffix(".cha")):
            shutil.copy(one, folder)


def change_word(folder: Path) -> None:
    """The second word of the longest transcript's third utterance."""
    path = max(folder.glob("*.cha"), key=lambda path: path.stat().st_size)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    third = [number for number, line in enumerate(lines) if line.startswith("*")][2]
    lines[third] = re.sub(r"^(\*\w+:\t\S+ )\S+", r"\1quite", lines[third])
    path.write_text("".join(lines), encoding="utf-8")


def measure(command: str, folder: Path) -> Sequence[tuple[str, Timed]]:
    source = folder / "in"
    write_corpus(source) if command == "morphotag" else write_recordings(source)
    runs = [(f"{mode} {number}", mode) for number in range(2) for mode in ("off", "refresh")]
    rows = [(f"{name}", compute(command, source, folder / name.replace(" ", ""), mode)) for name, mode in runs]
    rows += [("again, use", compute(command, source, folder / f"use{number}", "use")) for number in range(2)]
    outputs = [read_outputs(path) for path in folder.iterdir() if path != source]
    if any(made != outputs[0] for made in outputs):
        raise SystemExit(f"{command}: outputs differ")
    if command != "transcribe":
        change_word(source)
        rows.append(("one word changed, use", compute(command, source, folder / "edited", "use")))
        compute(command, source, folder / "plain", "off")
        if read_outputs(folder / "edited") != read_outputs(folder / "plain"):
            raise SystemExit(f"{command}: outputs differ after an edit")
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as place, Results() as results:
        os.environ["XDG_CACHE_HOME"] = place
        subprocess.run([*PREFORK, "matrix"], stdout=subprocess.DEVNULL, check=True)  # asks for the devices
        for command in sys.argv[1:] or OPTIONS:
            table = results.add_table("run", "seconds", "processor seconds", "found", title=command)
            folder = Path(place, command)
            folder.mkdir()
            for name, timed in measure(command, folder):
                table.add(name, f"{timed.seconds:.1f}", f"{timed.processor:.1f}", timed.found)
        results.note("all outputs are the same bytes")


if __name__ == "__main__":
    main()
