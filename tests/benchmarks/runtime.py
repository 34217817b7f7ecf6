"""What the runtime costs, measured on this machine: `python tests/benchmarks/runtime.py [NAME ...]`.

Every figure is taken beside what it is compared with, in the same run. Without names, all are measured (about ten
minutes on two cores). Those that need recordings or 16 GB of memory say so and are left out where there are none.
"""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.base import Job
from prefork.memory.probe import measure_memory
from tests.benchmarks.results import Results

SPEECH = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "speech"
PREFORK = [sys.executable, "-c", "from prefork.cli.app import main; main()"]
Row = tuple[str, str, str]  # what, measured, wanted

# One worker as it is usually written: its own interpreter, its own copy of the weights.
SPAWNED = """
import sys, time, torch
from transformers import AutoModelForCTC
torch.set_num_threads(1)
model = AutoModelForCTC.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    model(torch.randn(1, 160_000))
print("ready", flush=True)
sys.stdin.read()
"""
BUILD = """
import json, sys, torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC
from pathlib import Path
folder = Path(sys.argv[1])
large = dict(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, feat_extract_norm="layer",
    do_stable_layer_norm=True, conv_bias=True,
)
config = Wav2Vec2Config(**(large if sys.argv[3] == "large" else {}))
Wav2Vec2ForCTC(config).to(getattr(torch, sys.argv[2])).save_pretrained(folder)
Wav2Vec2FeatureExtractor().save_pretrained(folder)
letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
(folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
"""


@contextmanager
def big_model(dtype: str = "float32", size: str = "large") -> Iterator[Path]:
    """A wav2vec2 with 315 M random parameters, 1.26 GB in float32; `base`: 95 M, 0.38 GB. dtype: in its file."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-c", BUILD, name, dtype, size], check=True, capture_output=True)
        yield Path(name)


def write_jobs(folder: Path, count: int, seconds: float) -> list[Job]:
    """Noise with a transcript: what it takes to compute does not depend on what is said."""
    import av
    import numpy as np

    jobs = []
    for number in range(count):
        path = folder / f"noise{number}.wav"
        samples = np.random.default_rng(number).normal(0, 3000, (1, round(seconds * 16_000))).astype(np.int16)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        path.with_suffix(".txt").write_text("one two three\n")
        jobs.append(Job(path.stem, path.with_suffix(".txt"), path, (), seconds))
    return jobs


def measure_sharing() -> Iterator[Row]:
    """Memory of 8 workers with 1.26 GB of weights, and how soon a new one is ready; forked, and spawned."""
    from prefork import Runtime

    with big_model() as model, tempfile.TemporaryDirectory() as folder:
        jobs = write_jobs(Path(folder), 8, 10.0)
        started = time.monotonic()
        with Runtime("ctc", options={"model": str(model)}, workers=8) as runtime:
            loaded = time.monotonic() - started
            supervisor = runtime.supervisor
            pid = supervisor.zygote_pid()
            assert pid is not None and supervisor.inventory is not None
            peak = _read_peak(pid)
            for result in runtime.map(jobs):
                assert result.error is None, result.error
            pids = [pid, *(worker.pid for worker in supervisor.status())]
            memory = [m for m in map(measure_memory, pids) if m]
            ready = sorted(_time_replacements(runtime, 20))
        weights = supervisor.inventory.weights
        private = [m.uss for m in memory[1:]]
        spawned = [_spawn(model) for _ in range(8)]
        spawned_pss = sum(pss for _, pss, _ in spawned)
        yield (
            "PSS of zygote and 8 forked workers, 1.26 GB of weights",
            _gb(sum(m.pss for m in memory)),
            "3.0 GB",
        )
        yield "PSS of 8 spawned workers", _gb(spawned_pss), "beside it"
        yield "private memory of a forked worker, median", f"{statistics.median(private) / 1e6:.0f} MB", ""
        libraries = _measure_libraries()
        yield (
            "peak of the zygote while loading, less libraries",
            f"{(peak - libraries) / weights:.2f} x weights",
            "1.3 x",
        )
        yield "seconds to load, then fork 8", f"{loaded:.1f} s", ""
        yield (
            "one more forked worker, request to first message",
            f"median {statistics.median(ready) * 1e3:.0f} ms",
            "20 ms",
        )
        yield "one more spawned worker", f"median {statistics.median(s for s, _, _ in spawned):.1f} s", "beside it"
        for process in (process for _, _, process in spawned):
            process.kill()
            process.wait()


def _time_replacements(runtime: object, count: int) -> Iterator[float]:
    """Kills idle workers one by one; the seconds from asking for the next to its first message."""
    supervisor = runtime.supervisor  # type: ignore[attr-defined]
    for _ in range(count):
        victim = random.choice(supervisor.status())
        os.kill(victim.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            new = [w for w in supervisor.status() if w.slot == victim.slot and w.pid not in (0, victim.pid)]
            if new and new[0].ready_seconds is not None:
                yield new[0].ready_seconds
                break
            time.sleep(0.005)


def _spawn(model: Path) -> tuple[float, int, subprocess.Popen[bytes]]:
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", SPAWNED, str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()
    seconds = time.monotonic() - started
    memory = measure_memory(process.pid)
    assert memory is not None
    return seconds, memory.pss, process


def _measure_libraries() -> int:
    """What a zygote weighs that has imported everything and holds no weights to speak of."""
    from prefork import Runtime

    with Runtime("ctc", workers=1) as runtime:
        pid = runtime.supervisor.zygote_pid()
        assert pid is not None and runtime.supervisor.inventory is not None
        return _read_peak(pid) - runtime.supervisor.inventory.weights


def _read_peak(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def measure_start() -> Iterator[Row]:
    """What a user waits for before anything begins."""
    times = []
    for _ in range(11):
        started = time.monotonic()
        subprocess.run([*PREFORK, "--help"], check=True, capture_output=True)
        times.append(time.monotonic() - started)
    code = (
        "import sys, contextlib; from prefork.cli.app import app\n"
        "with contextlib.suppress(SystemExit): app(['--help'])\n"
        "print('torch' in sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1]
    yield "prefork --help", f"median {statistics.median(times) * 1e3:.0f} ms", "250 ms"
    yield "prefork --help imports torch", loaded, "False"


def _align(target: Path, *options: str, source: Path = SPEECH) -> dict[str, object]:
    """Runs the command; its summary, with the wall time of the whole process."""
    started = time.monotonic()
    done = subprocess.run(
        [*PREFORK, "align", str(source), str(target), "--json", *options], capture_output=True, text=True, check=False
    )
    wall = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"prefork align ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": wall}


@contextmanager
def corpus(copies: int = 1) -> Iterator[tuple[Path, Path]]:
    """A folder with the 20 recordings and their timed transcripts, so many times; and one for results."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in"
        for copy in range(copies):
            folder = source / f"{copy}"
            folder.mkdir(parents=True)
            for path in [*SPEECH.glob("*.cha"), *SPEECH.glob("*.flac")]:
                shutil.copy(path, folder)
        yield source, Path(name) / "out"


def measure_speed() -> Iterator[Row]:
    """The 20 recordings, 21 minutes, from a cold start to the last output; one worker on two threads beside two."""
    ratios, walls, privates = [], [], []
    with corpus() as (source, out):
        for trial in range(3):
            two = _align(out / f"two{trial}", "--workers", "2", "--threads", "1", source=source)
            one = _align(out / f"one{trial}", "--workers", "1", "--threads", "2", source=source)
            walls.append(float(str(two["process_seconds"])))
            privates.append(float(str(two["private"])))
            ratios.append(_throughput(two) / _throughput(one))
    yield (
        "20 recordings, 21 min, cold start to end, 2 workers",
        f"median {statistics.median(walls):.1f} s (best {min(walls):.1f})",
        "15 s",
    )
    yield (
        "2 workers against 1 worker on 2 threads, throughput after loading",
        f"median {statistics.median(ratios):.2f}",
        "1.2",
    )
    yield "private memory of a worker after the recordings", f"{max(privates) / 1e6:.0f} MB", "150 MB"


def _throughput(summary: dict[str, object]) -> float:
    """Audio seconds per second once the models are loaded."""
    seconds = {name: float(str(summary[name])) for name in ("audio_seconds", "wall_seconds", "load_seconds")}
    return seconds["audio_seconds"] / (seconds["wall_seconds"] - seconds["load_seconds"])


def measure_sameness() -> Iterator[Row]:
    """The same bytes, whoever did the work, however it was cut."""
    with corpus() as (source, out):
        formats = ["--format", "chat,json"]
        _align(out / "two", "--workers", "2", *formats, source=source)
        _align(out / "one", "--workers", "1", *formats, source=source)
        long = source.parent / "long"
        long.mkdir()
        _join_recordings(long)
        _align(out / "whole", "--workers", "1", *formats, source=long)
        split = _align(out / "split", "--workers", "3", *formats, source=long)
        minutes = float(str(split["audio_seconds"])) / 60
        yield "1 worker on 2 threads and 2 workers: outputs equal", _same(out / "one", out / "two"), "all"
        yield (
            f"one {minutes:.0f} min recording, by 1 worker and split over 3",
            _same(out / "whole", out / "split"),
            "all",
        )


def measure_splitting() -> Iterator[Row]:
    """One long recording by one worker, and shared out over two; each on one thread."""
    with corpus() as (source, out):
        long = source.parent / "long"
        long.mkdir()
        _join_recordings(long)
        ratios = []
        for trial in range(3):
            two = _align(out / f"two{trial}", "--workers", "2", "--threads", "1", source=long)
            one = _align(out / f"one{trial}", "--workers", "1", "--threads", "1", source=long)
            ratios.append(_throughput(two) / _throughput(one))
    yield (
        "one 21 min recording over 2 workers against 1, one thread each",
        f"median {statistics.median(ratios):.2f}",
        "",
    )


def _join_recordings(folder: Path) -> None:
    """All recordings after one another, with one timed transcript."""
    import av
    import numpy as np

    from prefork.engines.audio.reader import probe, read_audio

    lines = [
        "@UTF8",
        "@Begin",
        "@Languages:\teng",
        "@Participants:\tPAR Participant",
        "@ID:\teng|long|PAR|||||Participant|||",
    ]
    lines.append("@Media:\tlong, audio")
    truth = json.loads((SPEECH / "truth.json").read_text())
    offset = 0
    with av.open(str(folder / "long.flac"), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        for name in sorted(truth):
            path = SPEECH / f"{name}.flac"
            samples = (read_audio(path, 0.0, probe(path).seconds) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
            for utterance in truth[name]["utterances"]:
                start, end = (round(utterance[key] + offset / 16) for key in ("start_ms", "end_ms"))
                lines.append(f"*PAR:\t{utterance['text'].lower()} . \x15{start}_{end}\x15")
            offset += len(samples)
        container.mux(stream.encode(None))
    (folder / "long.cha").write_text("\n".join([*lines, "@End", ""]))


def _same(left: Path, right: Path) -> str:
    names = sorted(str(path.relative_to(left)) for path in left.rglob("*.*") if ".prefork" not in path.parts)
    equal, _, _ = filecmp.cmpfiles(left, right, names, shallow=False)
    return f"{len(equal)} of {len(names)}"


def measure_killing() -> Iterator[Row]:
    """kill -9 of workers, zygotes and supervisors at random moments; the outputs beside an undisturbed run's."""
    with corpus(copies=8) as (source, out):
        _align(out / "calm", source=source)
        kills = {"worker": 50, "zygote": 5, "supervisor": 5}
        starts = 0
        dice = random.Random(0)
        while True:
            starts += 1
            process = subprocess.Popen(
                [*PREFORK, "align", str(source), str(out / "hunted"), "--json"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            _hunt(process, kills, dice)
            _, errors = process.communicate()
            if process.returncode == 0 and not any(kills.values()):
                break
            if process.returncode == 0:  # done before all were killed: begin again
                shutil.rmtree(out / "hunted")
            if starts > 60:
                raise RuntimeError(f"no end after {starts} starts: {errors.decode()[-500:]}")
        left = [p.pid for p in psutil.process_iter(["cmdline"]) if "work.zygote" in " ".join(p.info["cmdline"] or [])]
        yield "killed 50 workers, 5 zygotes, 5 supervisors: outputs equal", _same(out / "calm", out / "hunted"), "all"
        yield "starts of the command that it took", str(starts), ""
        yield "processes left", str(len(left)), "0"


def _hunt(process: subprocess.Popen[bytes], kills: dict[str, int], dice: random.Random) -> None:
    """Kills one of the run's processes now and then, until it ends or there is nothing left to kill."""
    while process.poll() is None and any(kills.values()):
        time.sleep(dice.uniform(0.3, 1.2))
        zygotes = _children(process.pid)
        workers = [pid for zygote in zygotes for pid in _children(zygote)]
        if not workers:
            continue
        prey = dice.choices(list(kills), list(kills.values()))[0]
        pid = {"worker": dice.choice(workers), "zygote": zygotes[0], "supervisor": process.pid}[prey]
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        kills[prey] -= 1


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


MEASUREMENTS: dict[str, tuple[Callable[[], Iterator[Row]], str]] = {
    "start": (measure_start, ""),
    "sharing": (measure_sharing, "memory"),
    "speed": (measure_speed, "recordings"),
    "splitting": (measure_splitting, "recordings"),
    "sameness": (measure_sameness, "recordings"),
    "killing": (measure_killing, "recordings"),
}


def main(names: list[str]) -> None:
    with Results() as results:
        for name in names or list(MEASUREMENTS):
            measure, needs = MEASUREMENTS[name]
            if needs == "recordings" and not SPEECH.is_dir():
                results.note(f"{name}: left out; it needs the recordings in ../shared")
            elif needs == "memory" and psutil.virtual_memory().available < 18e9:
                results.note(f"{name}: left out; eight spawned workers need 18 GB of free memory")
            else:
                table = results.add_table("measured", "figure", "wanted", title=name)
                for row in measure():
                    table.add(*row)


if __name__ == "__main__":
    main(sys.argv[1:])
