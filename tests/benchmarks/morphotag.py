"""What tagging takes, on real sentences: `python tests/benchmarks/morphotag.py [NAME ...] [--model-dir DIR]`.

The sentences are those of ../shared/data/ud-english-ewt, as CHAT transcripts; the model is the one that comes with
prefork, or stanza's in DIR. Every figure is taken beside what it is compared with, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rustling.chat import CHAT

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork import Runtime
from prefork.engines.base import Job
from prefork.engines.stanza.models import EMBEDDED
from prefork.engines.text import formats
from prefork.engines.text.document import Document
from prefork.memory.probe import measure_memory
from prefork.pool.pipeline import Intake, Stage
from prefork.run.corpus import find_jobs
from prefork.wire.messages import Memory
from tests.benchmarks.results import Results
from tests.prefork.command import read_outputs, run

TREEBANK = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ud-english-ewt"
TRANSCRIPTS = 200
DEADLINE = 60.0  # seconds that a forked child has for one sentence
Row = tuple[str, str]

# The ordinary way: the parent loads the models and uses them once, as a server does that preloads its application.
PRELOAD = """
import os, sys, time, stanza
nlp = stanza.Pipeline("en", dir=sys.argv[1], processors="tokenize,mwt,pos,lemma,depparse", download_method=None,
                      use_gpu=False, verbose=False)
if sys.argv[2] == "used":
    nlp("We have used it once.")
for _ in range(int(sys.argv[3])):
    if os.fork() == 0:
        nlp("I want a cookie.")
        print(os.getpid(), flush=True)
        time.sleep(600)
print("forked", flush=True)
time.sleep(600)
"""
SPAWNED = """
import sys, torch, stanza
torch.set_num_threads(1)
nlp = stanza.Pipeline("en", dir=sys.argv[1], processors="tokenize,mwt,pos,lemma,depparse", download_method=None,
                      use_gpu=False, verbose=False)
nlp("I want a cookie.")
print("ready", flush=True)
sys.stdin.read()
"""


def write_corpus(folder: Path, count: int = TRANSCRIPTS) -> list[Path]:
    """The treebank's sentences as so many CHAT transcripts."""
    sentences = [
        utterance
        for path in sorted(TREEBANK.glob("*.conllu"))
        for utterance in formats.read(path).utterances
        if utterance.words
    ]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        part = sentences[number * len(sentences) // count : (number + 1) * len(sentences) // count]
        document = Document(tuple(part), format="text", media=f"talk{number:03}", languages=("eng",))
        paths.append(folder / f"talk{number:03}.cha")
        paths[-1].write_text(formats.render(document, "chat"), encoding="utf-8")
    return paths


class Measurements:
    """model: stanza's folder, None for the one that comes with prefork."""

    def __init__(self, model: Path | None, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._corpus = folder / "corpus"
        write_corpus(self._corpus)
        self._jobs = find_jobs(self._corpus, None, intake=Intake.TEXTS).jobs

    def measure_workers(self) -> Iterator[Row]:
        """Speed and memory with more workers, forked and spawned. Speed without the time to load."""
        speeds = {}
        for name, workers, strategy in (
            ("1 worker", 1, "fork"),
            ("2 workers, forked", 2, "fork"),
            ("2 workers, spawned", 2, "spawn"),
            ("8 workers, forked", 8, "fork"),
            ("8 workers, spawned", 8, "spawn"),
        ):
            with Runtime(self._make_pipeline(), workers=workers, threads=1, strategy=strategy) as runtime:
                while sum(worker.ready_seconds is not None for worker in runtime.supervisor.status()) < workers:
                    time.sleep(0.1)
                started = time.perf_counter()
                count = self._run(runtime, self._jobs)
                speeds[name] = count / (time.perf_counter() - started)
                memory = _measure(runtime)
            total = sum(one.pss for one in memory) / 1e6
            own = statistics.median(one.uss for one in memory[:workers]) / 1e6
            yield name, f"{speeds[name]:.0f} utterances/s; PSS of all {total:.0f} MB, USS of a worker {own:.0f} MB"
        yield "2 forked against 1", f"{speeds['2 workers, forked'] / speeds['1 worker']:.2f} x"

    def measure_batches(self) -> Iterator[Row]:
        """Utterances of several files in one go, against those of a file, and each by itself."""
        speeds = {}
        outputs = {}
        for name, words, segment in (("2,000 words", 2000, 200), ("a file's", 0, 2000), ("one utterance", 0, 0)):
            with Runtime(
                self._make_pipeline(batch_words=words, segment_words=segment), workers=1, threads=1
            ) as runtime:
                started = time.perf_counter()
                target = self._folder / name.replace(" ", "")
                count = self._run(runtime, self._jobs, target)
                speeds[name] = count / (time.perf_counter() - started)
                outputs[name] = read_outputs(target)
            yield f"in one go: {name}", f"{speeds[name]:.0f} utterances/s"
        first = outputs["2,000 words"]
        for name, other in list(outputs.items())[1:]:
            yield f"the same bytes as with {name}", f"{sum(first[k] == other[k] for k in first)} of {len(first)} files"

    def measure_growth(self) -> Iterator[Row]:
        """What a worker has of its own: after one transcript, after 500 utterances, after all of them, twice."""
        with Runtime(self._make_pipeline(), workers=1, threads=1) as runtime:
            for what, jobs in (("1 transcript", self._jobs[:1]), ("500 utterances", self._jobs[1:26])):
                self._run(runtime, jobs)
                yield f"own memory after {what}", f"{_measure(runtime)[0].uss / 1e6:.1f} MB"
            for times in (1, 2):
                self._run(runtime, self._jobs)
                yield f"after all {TRANSCRIPTS} transcripts, {times} x", f"{_measure(runtime)[0].uss / 1e6:.1f} MB"

    def measure_sameness(self) -> Iterator[Row]:
        """The command with one worker and with two, and what rustling's strict reader says of its outputs."""
        outputs = []
        for workers in (1, 2):
            target = self._folder / f"out{workers}"
            options = ["--model-dir", self._model] if self._model else []
            done = run(
                "morphotag", self._corpus, target, "--workers", workers, "--format", "chat,conllu,json", *options,
                timeout=1800,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr + done.stdout
            outputs.append(read_outputs(target))
        same = sum(outputs[0][name] == outputs[1][name] for name in outputs[0])
        yield "files that are the same with 1 and 2 workers", f"{same} of {len(outputs[0])}"
        yield from _judge(outputs[0])

    def measure_preloading(self) -> Iterator[Row]:
        """stanza preloaded the ordinary way, spawned four times, and here."""
        folder = str(self._model or EMBEDDED["eng"])
        for used in ("loaded", "used"):
            alive = _preload(folder, used, 4)
            yield f"ordinary preload, {used}, then fork", f"{alive} of 4 children answered within {DEADLINE:.0f} s"
        spawned = [_spawn(folder) for _ in range(4)]
        memory = [found for found in (measure_memory(process.pid) for process in spawned) if found]
        for process in spawned:
            process.kill()
            process.wait()
        yield "4 spawned by hand: PSS of all", f"{sum(one.pss for one in memory) / 1e6:.0f} MB"
        with Runtime(self._make_pipeline(), workers=4, threads=1, strategy="fork") as runtime:
            self._run(runtime, self._jobs[:40])
            total = sum(one.pss for one in _measure(runtime))
        yield "4 workers here: PSS of all", f"{total / 1e6:.0f} MB"

    def _make_pipeline(self, **options: int) -> tuple[Stage, ...]:
        where = {"model_dir": str(self._model)} if self._model else {}
        return (Stage("stanza", {**where, **options}),)

    def _run(self, runtime: Runtime, jobs: Sequence[Job], target: Path | None = None) -> int:
        """Utterances that were tagged."""
        count = 0
        wanted = [replace(job, outputs=job.outputs if target else ()) for job in jobs]
        for result in runtime.map(wanted, target=target):
            assert result.document is not None, result.error
            count += result.document.count_tagged()["utterances"]
        return count


def _judge(outputs: dict[str, bytes]) -> Iterator[Row]:
    """Whether rustling's strict reader takes the CHAT files, and finds in them the trees that the JSON files have."""
    accepted = trees = same = 0
    for name, data in outputs.items():
        if not name.endswith(".cha"):
            continue
        chat = CHAT.from_strs([data.decode()], strict=True)
        accepted += 1
        known = json.loads(outputs[name.removesuffix(".cha") + ".json"])["utterances"]
        found = [utterance for utterance in chat.utterances() if utterance.changeable_header is None]
        for utterance, wanted in zip(found, known, strict=True):
            words = [word for token in wanted.get("tokens", ()) for word in token["words"]]
            if not words:
                continue
            trees += 1
            relations = [token.gra for token in utterance.tokens or () if token.gra is not None]
            read = [(gra.dep, gra.head, gra.rel) for gra in relations]
            same += read == [
                (number, word["head"], word["deprel"].upper().replace(":", "-"))
                for number, word in enumerate(words, start=1)
            ]
    yield "CHAT files that rustling's strict reader takes", f"{accepted} of {len(outputs) // 3}"
    yield "utterances with %gra as it was parsed", f"{same} of {trees}"


def _measure(runtime: Runtime) -> list[Memory]:
    """Workers first, then the zygote."""
    pids = [worker.pid for worker in runtime.supervisor.status()]
    zygote = runtime.supervisor.zygote_pid()
    return [memory for memory in map(measure_memory, [*pids, *([zygote] if zygote else [])]) if memory]


def _preload(folder: str, used: str, count: int) -> int:
    """How many children of a process that has preloaded stanza answer in time."""
    command = [sys.executable, "-c", PRELOAD, folder, used, str(count)]
    with tempfile.NamedTemporaryFile("w") as output:
        process = subprocess.Popen(command, stdout=output, start_new_session=True)
        said, forked = "", 0.0
        while not forked or time.monotonic() < forked + DEADLINE:
            said = Path(output.name).read_text()
            if "forked" in said and not forked:
                forked = time.monotonic()
            if len(said.splitlines()) == count + 1 or process.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return len(said.splitlines()) - ("forked" in said)


def _spawn(folder: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SPAWNED, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


MEASUREMENTS = {
    "workers": Measurements.measure_workers,
    "batches": Measurements.measure_batches,
    "growth": Measurements.measure_growth,
    "sameness": Measurements.measure_sameness,
    "preload": Measurements.measure_preloading,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*MEASUREMENTS, []], metavar="NAME")
    parser.add_argument("--model-dir", type=Path)
    chosen = parser.parse_args()
    with Results() as results, tempfile.TemporaryDirectory() as folder:
        measurements = Measurements(chosen.model_dir, Path(folder))
        for name in chosen.names or MEASUREMENTS:
            table = results.add_table("what", "measured", title=name)
            for row in MEASUREMENTS[name](measurements):
                table.add(*row)


if __name__ == "__main__":
    main()
