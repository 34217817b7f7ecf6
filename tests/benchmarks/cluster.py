"""Many machines: `python tests/benchmarks/cluster.py faults HOSTS`, `overhead HOSTS FILES` ...

faults: 40 recordings on hosts in network namespaces (root, iproute2), 20 of which are killed at random and come back;
the driver is killed three times and one host's network is cut for 60 s. overhead: recordings of a minute, by one
machine with as many workers and by so many machines with one each, in turns. `scale MACHINES JOBS SECONDS LIMIT`:
machines without models, whose jobs sleep, through Dask, until so many seconds are over; of the driver's memory, what it
has beside the jobs. `dispatch MACHINES JOBS`: the driver's decisions alone. `shards JOBS`: how long it takes to divide
so many jobs.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import pickle
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from prefork.engines.audio.reader import SAMPLE_RATE, probe, read_audio  # noqa: E402
from prefork.engines.base import Job  # noqa: E402
from tests.benchmarks.results import Results, Table  # noqa: E402
from tests.engines.audio_files import make_distinct, write_audio  # noqa: E402
from tests.prefork.command import SAMPLES, copy_sample, read_outputs  # noqa: E402
from tests.prefork.hosts import Host, find_lack, make_hosts  # noqa: E402

PREFORK = [sys.executable, "-m", "prefork"]
KILLS, DRIVER_KILLS, CUT_SECONDS, FILES = 20, 3, 60.0, 40
MEMORY = 2_500_000_000  # bytes of each host
ENVIRONMENT = {"PYTHONPATH": str(ROOT / ".editable"), "PREFORK_CACHE": "off"}


class Cluster:
    """A scheduler on the first host, a machine on each other one."""

    def __init__(self, folder: Path, hosts: list[Host]) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.home, *self.hosts = hosts
        self.log = folder / "printed.txt"
        self.runs: list[Path] = []
        subprocess.run([*PREFORK, "cluster", "init", folder / "tls"], check=True, stdout=subprocess.DEVNULL)
        command = ["cluster", "start", str(self.file), "--tls", str(folder / "tls"), "--host", self.home.address]
        self.scheduler = self.home.start([*PREFORK, *command], ENVIRONMENT, self.log)
        self.machines: dict[str, subprocess.Popen[bytes]] = {}
        for host in self.hosts:
            self.join(host)

    def join(self, host: Host) -> None:
        command = ["join", str(self.file), "--name", host.name, "--workers", "1", "--threads", "1"]
        self.machines[host.name] = host.start([*PREFORK, *command], ENVIRONMENT, self.log)

    def align(self, source: Path, target: Path) -> subprocess.Popen[bytes]:
        """What it prints goes to a file of its own."""
        self.runs.append(self.folder / f"run{len(self.runs)}.txt")
        command = ["align", str(source), str(target), "--json", "--cluster", str(self.file)]
        return self.home.start([*PREFORK, *command], ENVIRONMENT, self.runs[-1])

    def count_twice(self) -> int:
        """Files that one run has done twice."""
        twice = 0
        for run in self.runs:
            events = [
                json.loads(line) for line in run.read_text().splitlines() if line.startswith("{") and line.endswith("}")
            ]
            done = [event["id"] for event in events if event["event"] == "done"]
            twice += len(done) - len(set(done))
        return twice

    def stop(self) -> None:
        command = ["nsenter", f"--net=/run/netns/{self.home.name}", *PREFORK, "cluster", "stop", str(self.file)]
        subprocess.run(command, check=False, env={**os.environ, **ENVIRONMENT})


def _make_corpus(folder: Path, count: int) -> Path:
    samples = sorted(path.stem for path in SAMPLES.glob("*.cha"))
    for number in range(count):
        copy_sample(folder, samples[number % len(samples)], f"file{number:03}")
    return folder


def measure_faults(table: Table, count: int, seed: int = 27) -> None:  # noqa: PLR0915
    """Until everything is done, giving the command again when the driver was killed."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, make_hosts(count, cores=2 / count, memory=MEMORY) as hosts:
        folder = Path(name)
        corpus, out = _make_corpus(folder / "in", FILES), folder / "out"
        subprocess.run(
            [*PREFORK, "align", corpus, folder / "one", "--quiet"], check=True, env={**os.environ, **ENVIRONMENT}
        )
        cluster = Cluster(folder, hosts)
        driver, began = cluster.align(corpus, out), time.monotonic()
        codes: Counter[int] = Counter()  # of the commands
        faults = ["kill"] * KILLS + ["driver"] * DRIVER_KILLS + ["cut"]
        draw.shuffle(faults)
        hit = dict.fromkeys(("kill", "driver", "cut"), 0)
        cut_until, cut = 0.0, cluster.hosts[0]
        due = time.monotonic() + 10
        while time.monotonic() - began < 1500:
            time.sleep(0.2)
            now = time.monotonic()
            if cut_until and now > cut_until:
                cut.cut(False)
                cut_until = 0.0
            if driver.poll() is not None:
                codes[driver.returncode] += 1
                if driver.returncode == 0 and not faults:
                    break
                if driver.returncode == 0:  # everything is done before all faults were: what is done is done again
                    for path in sorted(out.rglob("*.cha"))[: FILES // 2]:
                        path.unlink()
                driver = cluster.align(corpus, out)
            if faults and now > due:
                fault = faults.pop()
                hit[fault] += 1
                due = now + draw.uniform(2, 8)
                victim = draw.choice([host for host in cluster.hosts if host is not cut or not cut_until])
                if fault == "kill":
                    victim.kill()
                    cluster.join(victim)
                elif fault == "driver":
                    driver.kill()
                else:
                    cut = victim
                    cut.cut(True)
                    cut_until = now + CUT_SECONDS
        took = time.monotonic() - began
        same = read_outputs(out) == read_outputs(folder / "one")
        done = _count_done(out)
        cluster.stop()
        deadline = time.monotonic() + 30
        while any(host.list_pids() for host in hosts) and time.monotonic() < deadline:
            time.sleep(0.2)
        left = sum(len(host.list_pids()) for host in hosts)
        twice = cluster.count_twice()
    table.add(
        str(count),
        ", ".join(f"{number} x {fault}" for fault, number in hit.items()),
        ", ".join(f"{number} x {code}" for code, number in sorted(codes.items(), reverse=True)),
        f"{took:.0f} s",
        f"{done} of {FILES}",
        "the same bytes" if same else "DIFFERENT",
        str(twice),
        str(left),
    )


def _count_done(out: Path) -> int:
    command = [*PREFORK, "status", str(out), "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **ENVIRONMENT})
    return int(json.loads(printed.stdout)["done"])


def _make_minutes(folder: Path, count: int) -> Path:
    """Recordings of about a minute, no two the same."""
    sample = max(SAMPLES.glob("*.flac"), key=lambda path: path.stat().st_size)
    sound = read_audio(sample, 0.0, probe(sample).seconds)[None]
    for number in range(count):
        transcript = copy_sample(folder, sample.stem, f"file{number:03}")
        distinct = make_distinct(sound, number)
        write_audio(transcript.with_suffix(".flac"), distinct, SAMPLE_RATE, "flac", sample_format="s16")
    return folder


def measure_overhead(table: Table, count: int, files: int, rounds: int = 3) -> None:
    """One machine with as many workers, and so many machines with one each, in turns; loading is not counted."""
    environment = {**os.environ, **ENVIRONMENT}
    taken: dict[str, list[float]] = {"one machine": [], "cluster": []}
    same = True
    with tempfile.TemporaryDirectory() as name, make_hosts(count) as hosts:
        folder = Path(name)
        corpus = _make_minutes(folder / "in", files)
        cluster = Cluster(folder, hosts)
        time.sleep(8)  # until they have joined
        for turn in range(rounds):
            one, out = folder / f"one{turn}", folder / f"out{turn}"
            alone = [*PREFORK, "align", str(corpus), str(one), "--workers", str(count), "--threads", "1", "--json"]
            done = subprocess.run(alone, capture_output=True, text=True, check=True, env=environment)
            cluster.align(corpus, out).wait()
            printed = {"one machine": done.stdout, "cluster": cluster.runs[-1].read_text()}
            for what, text in printed.items():
                summary: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
                taken[what].append(summary["wall_seconds"] - summary["load_seconds"])
            same = same and read_outputs(one) == read_outputs(out)
        cluster.stop()
    for what, times in taken.items():
        table.add(what, str(count), ", ".join(f"{took:.1f} s" for took in times), f"{statistics.median(times):.1f} s")
    ratios = [together / alone for alone, together in zip(*taken.values(), strict=True)]
    more = f"{100 * (statistics.median(ratios) - 1):.1f} %, {'the same bytes' if same else 'DIFFERENT'}"
    table.add("cluster, more than one machine", "", ", ".join(f"{100 * (r - 1):.1f} %" for r in ratios), more)


# -- scale -----------------------------------------------------------------------------------------------------------


def _be_machines(address: str, count: int) -> None:
    """Dask's workers without a model, in one process: each says that it is ready."""
    from distributed import Worker

    from prefork.cluster import machine
    from prefork.cluster.connecting import CONNECT_SECONDS
    from prefork.cluster.messages import ANSWER, ORDER, Answer, EndOrder

    done = pickle.dumps(Answer(value=pickle.dumps((None, b"done"))))
    ended = pickle.dumps(Answer())

    class Sleeper(machine.MachinePlugin):
        def setup(self, worker: Worker) -> None:
            self._worker, self._name = worker, str(worker.name)
            self._over, self._computer = threading.Event(), None
            worker.stream_handlers[ORDER] = self._take
            self._tell("loading")
            values = {"room": 2, "workers": 1, "strategy": "none", "device": "none", "blind": False}
            worker.loop.call_later(1.0, lambda: self._tell("ready", **values))

        def teardown(self, worker: Worker) -> None:
            pass

        def _take(self, session: str, number: int, data: bytes) -> None:
            order = pickle.loads(data)
            message = {"op": ANSWER, "session": session, "number": number}
            if isinstance(order, EndOrder):
                self._send({**message, "data": ended})
            else:
                self._worker.loop.call_later(order.job.seconds, self._send, {**message, "data": done})

    for name in ("setup", "teardown", "_take"):
        setattr(machine.MachinePlugin, name, Sleeper.__dict__[name])

    async def serve() -> None:
        options: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0"}
        workers = [Worker(address, name=f"m{os.getpid()}-{n}", **options) for n in range(count)]
        for start in range(0, count, 20):
            await asyncio.gather(
                *(asyncio.wait_for(_start(w), CONNECT_SECONDS * 8) for w in workers[start : start + 20])
            )
        await asyncio.gather(*(worker.finished() for worker in workers))

    async def _start(worker: Worker) -> None:
        await worker

    asyncio.run(serve())


def measure_scale(table: Table, machines: int, jobs: int, seconds: float, limit: float) -> None:  # noqa: PLR0915
    """The driver, in this process; the scheduler and the machines have processes of their own. limit: seconds."""
    from distributed import Client

    from prefork.cluster import driver
    from prefork.cluster.messages import Session
    from prefork.pool.jobs import Course, JobResult

    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "scheduler.json"
        start = [*PREFORK, "cluster", "start", str(file), "--host", "127.0.0.1"]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": f"{ROOT / '.editable'}{os.pathsep}{ROOT}"}
        scheduler = subprocess.Popen(start, env=environment, stderr=subprocess.DEVNULL)
        processes = [scheduler]
        try:
            while not file.exists():
                time.sleep(0.1)
            address = json.loads(file.read_text())["address"]
            share = 125
            for _ in range(0, machines, share):
                code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.benchmarks import cluster as c; "
                code += f"c._be_machines({address!r}, {min(share, machines)})"
                processes.append(subprocess.Popen([sys.executable, "-c", code], env=environment))
            with Client(address, set_as_default=False, timeout=60) as client:
                while len(client.nthreads()) < machines:
                    time.sleep(0.5)
                session = Session("scale", (), (), "scale")
                known = [Job(f"{n}.cha", Path(f"{n}.cha"), seconds=seconds) for n in range(jobs)]  # a run has them
                before = psutil.Process().memory_info().rss
                cluster = driver.Cluster(client, session, print)
                cluster.wait_until_loaded()
                while sum(m.workers for m in cluster.list_machines()) < machines:
                    time.sleep(0.5)
                count = 0
                began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
                busy = sum(psutil.Process(scheduler.pid).cpu_times()[:2])
                stop = time.monotonic() + limit

                def take(result: JobResult) -> None:
                    nonlocal count
                    count += 1

                cluster.run_jobs(known, Course(()), take)
                most = 0
                while count < jobs and time.monotonic() < stop:
                    time.sleep(0.5)
                    most = max(most, psutil.Process().memory_info().rss)
                took = time.monotonic() - began
                now = resource.getrusage(resource.RUSAGE_SELF)
                cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
                of_scheduler = psutil.Process(scheduler.pid)
                table.add(
                    f"{machines:,}",
                    f"{count:,} of {jobs:,}",
                    f"{seconds:g} s",
                    f"{count / took:.0f}",
                    f"{1000 * cpu / max(1, count):.2f} ms, {(most - before) / 1e6:.0f} MB",
                    f"{1000 * (sum(of_scheduler.cpu_times()[:2]) - busy) / max(1, count):.2f} ms, "
                    f"{of_scheduler.memory_info().rss / 1e6:.0f} MB",
                )
                cluster.drain(0.0)
                cluster.shutdown()
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait()


def measure_dispatch(table: Table, machines: int, jobs: int) -> None:
    """Who gets what, without Dask: simulated machines that take a second for each job, with the driver's units."""
    from prefork.cluster.dispatching import Dispatch, Unit
    from prefork.cluster.messages import JobOrder
    from prefork.cluster.work import Work

    process = psutil.Process()
    before, began = process.memory_info().rss, time.process_time()
    dispatch = Dispatch()
    for number in range(machines):
        dispatch.join(str(number), str(number))
        dispatch.make_ready(str(number), 2)
    for number in range(jobs):
        job = Job(f"{number}.cha", Path(f"{number}.cha"), seconds=1.0)
        dispatch.add(Unit((number, 0, 0), 1.0, Work(JobOrder(job), print, print)))
    memory = process.memory_info().rss - before
    added = time.process_time() - began
    running: list[tuple[float, int, str, Unit]] = []
    now, count = 0.0, 0
    while True:
        for machine, unit in dispatch.assign(now):
            heapq.heappush(running, (now + 1.0, unit.order[0], machine.address, unit))
        if not running:
            break
        now, _, address, unit = heapq.heappop(running)
        count += dispatch.finish(unit, address, now)
    took = time.process_time() - began - added
    table.add(f"{machines:,}", f"{count:,}", f"{memory / 1e6:.0f} MB", f"{added:.1f} s", f"{1e6 * took / count:.1f} µs")


def measure_shards(table: Table, jobs: int) -> None:
    from prefork.run.shards import divide

    draw = random.Random(27)
    lengths = sorted((draw.expovariate(1 / 60) for _ in range(jobs)), reverse=True)
    for count in (10, 1_000, 10_000):
        began = time.monotonic()
        places = divide(lengths, count)
        took = time.monotonic() - began
        totals = [0.0] * count
        for length, place in zip(lengths, places, strict=True):
            totals[place] += length
        spread = 100 * (max(totals) - min(totals)) / (sum(totals) / count)
        table.add(f"{jobs:,}", f"{count:,}", f"{took:.2f} s", f"{spread:.3f} %")


def main() -> None:
    what, *figures = sys.argv[1:]
    if what in ("faults", "overhead") and (lack := find_lack()):
        sys.exit(lack)
    with Results() as results:
        if what == "faults":
            columns = [
                "hosts",
                "faults",
                "commands' exit codes",
                "time",
                "done",
                "outputs",
                "done twice",
                "processes left",
            ]
            measure_faults(results.add_table(*columns, title=what), int(figures[0]))
        elif what == "overhead":
            columns = ["what", "workers", "without loading", "median"]
            measure_overhead(results.add_table(*columns, title=what), int(figures[0]), int(figures[1]))
        elif what == "scale":
            columns = ["machines", "jobs", "each sleeps", "jobs a second", "driver for each job, memory", "scheduler"]
            machines, jobs, seconds, limit = int(figures[0]), int(figures[1]), float(figures[2]), float(figures[3])
            measure_scale(results.add_table(*columns, title=what), machines, jobs, seconds, limit)
        elif what == "dispatch":
            columns = ["machines", "jobs", "memory of the jobs", "CPU to add them", "CPU to give and take one"]
            measure_dispatch(results.add_table(*columns, title=what), int(figures[0]), int(figures[1]))
        else:
            columns = ["jobs", "shards", "to divide", "largest less smallest shard, of the mean"]
            measure_shards(results.add_table(*columns, title=what), int(figures[0]))


if __name__ == "__main__":
    main()
