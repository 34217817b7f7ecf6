"""What the platform matrix costs and what it is worth: `python tests/benchmarks/matrix.py [NAME ...]`.

Every figure is taken beside what it is compared with, in the same run. Without names, all are measured (about eight
minutes on two cores).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import prefork.pool.requests
from prefork import Runtime
from prefork.engines.base import Job
from prefork.memory.probe import measure_memory
from prefork.wire.messages import Memory
from tests.benchmarks.results import Results
from tests.benchmarks.runtime import PREFORK, Row, big_model, write_jobs

TRIES = 20
DEADLINE = 10.0  # seconds for an inference that takes 0.1 s
MODELS = Path(__file__).resolve().parents[1] / "data" / "models_to_check.py"

# A preloaded model as it is usually written: built in the parent, used in the child. It says how the child ended.
NAIVE = """
import os, sys, time
from transformers import AutoModelForCTC
import torch
model = AutoModelForCTC.from_pretrained(sys.argv[1]).eval()
if sys.argv[2] == "used":
    with torch.inference_mode():
        model(torch.randn(1, 80_000))
pid = os.fork()
if pid == 0:
    with torch.inference_mode():
        model(torch.randn(1, 80_000))
    os._exit(0)
until = time.monotonic() + float(sys.argv[3])
while time.monotonic() < until:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        print("lived" if status == 0 else "died", flush=True)
        os._exit(0)
    time.sleep(0.01)
os.kill(pid, 9)
print("hung", flush=True)
os._exit(0)
"""


def build_model(folder: Path) -> None:
    """A wav2vec2 of 95 M random parameters, as large as wav2vec2-base."""
    code = (
        "import sys, json; from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2FeatureExtractor\n"
        "Wav2Vec2ForCTC(Wav2Vec2Config()).save_pretrained(sys.argv[1])\n"
        "Wav2Vec2FeatureExtractor().save_pretrained(sys.argv[1])\n"
        "letters = ['<pad>', '<s>', '</s>', '<unk>', '|', *\"ETAONIHSRDLUMWCFGYPBVK'XJQZ\"]\n"
        "json.dump({l: i for i, l in enumerate(letters)}, open(sys.argv[1] + '/vocab.json', 'w'))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)


def measure_hanging() -> Iterator[Row]:
    """20 tries each: a model that was loaded the ordinary way and forked, and the same model through prefork."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as jobs:
        build_model(Path(name))
        for state in ("loaded", "used"):
            ends = [_fork_naively(name, state) for _ in range(TRIES)]
            counts = ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends)))
            yield f"naive fork, model {state} in the parent, {TRIES} tries", counts, "beside it"
        lived = 0
        (job,) = write_jobs(Path(jobs), 1, 5.0)
        for _ in range(TRIES):
            with Runtime("ctc", options={"model": name}, workers=1, strategy="fork") as runtime:
                (result,) = runtime.map([job])
                lived += result.error is None
        yield f"prefork, one job in a forked worker, {TRIES} tries", f"{lived} lived", f"{TRIES} lived"


def _fork_naively(model: str, state: str) -> str:
    command = [sys.executable, "-c", NAIVE, model, state, str(DEADLINE)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def measure_mapping() -> Iterator[Row]:
    """4 spawned workers with 1.26 GB of weights in float32 after a job each, with the mapped arena and without."""
    for dtype in ("float16", "float32"):
        with big_model(dtype) as model, tempfile.TemporaryDirectory() as folder:
            jobs = write_jobs(Path(folder), 8, 10.0)
            totals = []
            for shared in (True, False):
                prefork.pool.requests.make_plan = _fix_sharing(shared)
                what = f"{dtype} in the file, {'with' if shared else 'without'} the arena"
                memory, peak, ready = _spawn_four(model, jobs)
                totals.append(sum(m.pss for m in memory))
                private = statistics.median(m.uss for m in memory)
                yield f"{what}: PSS of 4 spawned workers", f"{totals[-1] / 1e9:.2f} GB", ""
                yield f"{what}: private memory of each, median", f"{private / 1e9:.2f} GB", ""
                yield f"{what}: peak PSS while they load", f"{peak / 1e9:.2f} GB", ""
                yield f"{what}: all four ready after", f"{ready:.1f} s", ""
            yield f"{dtype} in the file: with against without", f"{totals[0] / totals[1]:.2f} x", ""


def _spawn_four(model: Path, jobs: list[Job]) -> tuple[list[Memory], int, float]:
    """The workers' memory after their jobs, the most they had together while they loaded, seconds until all could."""
    started, peak = time.monotonic(), 0
    with Runtime("ctc", options={"model": str(model)}, workers=4, threads=1, strategy="spawn") as runtime:
        while sum(worker.ready_seconds is not None for worker in runtime.supervisor.status()) < 4:
            peak = max(peak, sum(memory.pss for memory in _measure(runtime)))
            time.sleep(0.2)
        ready = time.monotonic() - started
        assert all(result.error is None for result in runtime.map(jobs))
        return _measure(runtime), peak, ready


def _measure(runtime: Runtime) -> list[Memory]:
    pids = [worker.pid for worker in runtime.supervisor.status()]
    return [memory for memory in map(measure_memory, pids) if memory]


def _fix_sharing(shared: bool) -> Any:
    return lambda request: make_plan(replace(request, copies=not shared))


make_plan = prefork.pool.requests.make_plan


def measure_start() -> Iterator[Row]:
    """What a user waits for."""
    subprocess.run([*PREFORK, "matrix"], check=True, capture_output=True)  # asks the devices, if nobody has
    times = []
    for _ in range(15):
        started = time.monotonic()
        subprocess.run([*PREFORK, "matrix"], check=True, capture_output=True)
        times.append(time.monotonic() - started)
    yield "prefork matrix, devices cached", f"median {statistics.median(times) * 1e3:.0f} ms", "300 ms"
    code = (
        "import sys, contextlib; from prefork.cli.app import app\n"
        "with contextlib.suppress(SystemExit): app(['matrix'])\n"
        "print('torch' in sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1]
    yield "prefork matrix imports torch", loaded, "False"


def measure_checks() -> Iterator[Row]:
    """How long `prefork check` takes, and what it finds."""
    targets = {
        "ctc": ["ctc"],
        "own pool of threads": ["Pooled", "infer_in_pool"],
        "OpenMP initialised in the parent": ["load_with_openmp", "infer"],
        "writes to a buffer": ["load_training", "infer"],
        "hangs": ["load_model", "infer_and_hang"],
    }
    for name, arguments in targets.items():
        options = arguments
        if len(arguments) == 2:
            options = ["--load", f"{MODELS}:{arguments[0]}", "--infer", f"{MODELS}:{arguments[1]}", "--deadline", "5"]
        options = [*options, "--fork", "prefork"]
        started = time.monotonic()
        done = subprocess.run([*PREFORK, "check", *options], capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        verdict = done.stdout.strip().rpartition("\n")[2].partition(": ")[2]
        yield (
            f"prefork check, {name}",
            f"{seconds:.1f} s, exit {done.returncode}: {verdict}",
            "0" if name == "ctc" else "1",
        )


MEASUREMENTS: dict[str, Callable[[], Iterator[Row]]] = {
    "start": measure_start,
    "checks": measure_checks,
    "mapping": measure_mapping,
    "hanging": measure_hanging,
}


def main(names: list[str]) -> None:
    with Results() as results:
        for name in names or list(MEASUREMENTS):
            table = results.add_table("measured", "figure", "wanted", title=name)
            for row in MEASUREMENTS[name]():
                table.add(*row)


if __name__ == "__main__":
    main(sys.argv[1:])
