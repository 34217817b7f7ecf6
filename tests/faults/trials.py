"""Trials: a run of the command each, disturbed as its seed decides, and what is wrong with the end of it.

What comes out, at once or when the same command is given again, is what comes out of a calm run, byte for byte.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.prefork.command import PREFORK, SAMPLES, find_children, read_outputs, wait_until_gone, write_script
from tests.prefork.machine import SCHEDULES

SCRIPT_ENGINE = Path(__file__).resolve().parents[1] / "data" / "script_engine"
STRATEGIES = ("fork", "spawn", "server")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGSEGV", "SIGABRT", "SIGSTOP", "SIGINT", "SIGHUP")
ENDING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL")  # that the command itself is sent
MUTANTS = 24  # in one run
EXAMPLES = 1000  # schedules in one run of each property test
_LIMIT = 150.0  # seconds: who takes longer hangs
_TRACEBACK = "Traceback (most recent call last)"
_BARE = re.compile(r"^\w*(Error|Exception):?$")  # an error's name, and nothing about it


@dataclass
class Trial:
    """done: what was done to the run, in words. count: signals sent, inputs mutated ... wrong: what must not be."""

    kind: str
    seed: int
    folder: Path
    done: list[str] = field(default_factory=list)
    count: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.kind} {self.seed}")

    @property
    def out(self) -> Path:
        return self.folder / "out"


@dataclass(frozen=True)
class Ending:
    """Of one run. failed: reasons, by job. finished: jobs."""

    status: int
    said: str
    failed: Mapping[str, str]
    finished: Sequence[str]


def run_trial(kind: str, seed: int, folder: Path) -> Trial:
    """folder: an empty one, for this trial."""
    trial = Trial(kind, seed, folder)
    KINDS[kind](trial)
    return trial


def send_signals(trial: Trial) -> None:
    """To any of the run's processes, itself included, at any time."""
    command = _write_corpus(trial, jobs=12, naps=12, strategy=trial.random.choice(STRATEGIES))
    with _running(trial, command) as process:
        for _ in range(trial.random.randint(1, 8)):
            time.sleep(trial.random.choice([0.0, 0.1, 0.5, 2.0]) * trial.random.random())
            _send_signal(trial, process)
    _finish(trial, command)
    _compare(trial, command)


def edit_inputs(trial: Trial) -> None:
    """While they are read."""
    command = _write_corpus(trial)
    with _running(trial, command):
        for _ in range(trial.random.randint(1, 3)):
            time.sleep(trial.random.uniform(0.5, 3.0))
            source = trial.random.choice(sorted((trial.folder / "in").glob("*.txt")))
            edited = source.read_text().replace("say x", trial.random.choice(["say y", "say xx"]), 1)
            if trial.random.random() < 0.5:  # in place, or by another file in its place
                source.write_text(edited)
            else:
                (trial.folder / "new").write_text(edited)
                (trial.folder / "new").replace(source)
            trial.count += 1
            trial.done.append(f"edited {source.name}")
    _finish(trial, command)
    _compare(trial, command)


def damage_journal(trial: Trial) -> None:
    """Between two runs."""
    command = _write_corpus(trial, jobs=6, naps=0)
    _finish(trial, command)
    (journal,) = trial.out.rglob("journal.sqlite")
    data = bytearray(journal.read_bytes())
    how = trial.random.choice(["bytes", "cut", "page", "empty"])
    if how == "bytes":
        for _ in range(trial.random.randint(1, 40)):
            data[trial.random.randrange(len(data))] = trial.random.randrange(256)
    elif how == "page":
        start = 4096 * trial.random.randrange(max(1, len(data) // 4096))
        data[start : start + 4096] = trial.random.randbytes(4096)
    else:
        del data[0 if how == "empty" else trial.random.randrange(len(data)) :]
    journal.write_bytes(data)
    trial.count += 1
    trial.done.append(f"damaged the journal: {how}")
    if trial.random.random() < 0.5:
        output = trial.random.choice(sorted(trial.out.glob("*.json")))
        output.write_bytes(output.read_bytes()[:-1])
        trial.done.append(f"cut {output.name}")
    _finish(trial, command)
    _compare(trial, command)


def fill_disk(trial: Trial) -> None:
    """OUT has room for some of it alone; then it has more. Needs root, and Linux."""
    command = _write_corpus(trial, naps=0)
    trial.out.mkdir()
    size = trial.random.randint(12, 60)
    _mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(trial.out))
    try:
        first = _run(trial, command)
        trial.count += 1
        trial.done.append(f"{size} kB of room: exit status {first.status}")
        _mount("-o", "remount,size=50m", str(trial.out))
        _finish(trial, command)
        _compare(trial, command)
    finally:
        subprocess.run(["umount", "-l", str(trial.out)], check=True)


def mutate_inputs(trial: Trial) -> None:
    """Transcripts and recordings with some bytes changed, lost or doubled, beside one that is whole."""
    source = trial.folder / "in"
    source.mkdir()
    for suffix in (".cha", ".flac"):
        shutil.copy(SAMPLES / f"child14{suffix}", source / f"whole{suffix}")
    for number in range(MUTANTS):
        name = trial.random.choice(["adult00", "adult07", "child14", "child15"])
        text = (SAMPLES / f"{name}.cha").read_bytes().replace(f"{name}, audio".encode(), b"mutant%02d, audio" % number)
        data = (SAMPLES / f"{name}.flac").read_bytes()[: trial.random.randint(20_000, 60_000)]
        which = trial.random.choice(["text", "recording", "both"])  # most of both fail for the text
        text = text if which == "recording" else _mutate(text, trial.random, bytes(range(32, 127)))
        data = data if which == "text" else _mutate(data, trial.random, bytes(range(256)))
        (source / f"mutant{number:02}.cha").write_bytes(text)
        (source / f"mutant{number:02}.flac").write_bytes(data)
        trial.count += 1 + (which == "both")
    whole = (source / "whole.cha").read_text().replace("child14, audio", "whole, audio")
    (source / "whole.cha").write_text(whole)
    trial.done.append(f"{trial.count} mutants")
    ending = _run(trial, ["align", str(source), str(trial.out), "--json", "--workers", "2"])
    if ending.status not in (0, 1):
        trial.wrong.append(f"exit status {ending.status}: {ending.said[-500:]}")
    if "whole.cha" not in ending.finished:
        trial.wrong.append("the input that is whole was not done")
    known = {*ending.finished, *ending.failed}
    lost = [path.name for path in source.glob("*.cha") if path.name not in known]
    if lost:
        trial.wrong.append(f"neither done nor failed: {', '.join(lost)}")


def vary_schedules(trial: Trial) -> None:
    """Of the pool's state machine, which ships: its two property tests with this seed, and more examples."""
    root = Path(__file__).resolve().parents[2]
    modules = [f"tests/prefork/{name}.py" for name in ("test_pool_state", "test_pool_calls")]
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", "ends_once", "--hypothesis-seed", str(trial.seed)]
    command = [sys.executable, "-m", "pytest", *options, *modules]
    environment = {**os.environ, SCHEDULES: str(EXAMPLES)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        trial.wrong.append(done.stdout[-3000:])
    trial.count += len(modules) * EXAMPLES
    trial.done.append(f"{EXAMPLES} schedules of tasks, as many of calls")


KINDS: dict[str, Callable[[Trial], None]] = {
    "signals": send_signals,
    "edits": edit_inputs,
    "journals": damage_journal,
    "mutants": mutate_inputs,
    "full disks": fill_disk,
    "schedules": vary_schedules,
}


def can_run(kind: str) -> bool:
    """Whether this machine allows it."""
    return kind != "full disks" or (sys.platform == "linux" and os.geteuid() == 0)


# -- runs ----------------------------------------------------------------------------------------------------------


def _write_corpus(trial: Trial, jobs: int = 8, naps: int = 6, strategy: str = "fork") -> list[str]:
    """Some seconds of work for two workers; the command that does it."""
    for number in range(jobs):
        lines = ["sleep"] * naps + [f"say {'x' * (number + 1)}"] * 3
        write_script(trial.folder / "in", f"job{number:02}", *lines)
    trial.done.append(f"strategy {strategy}")
    options = ["--engine", "script", "--format", "json", "--json", "--workers", "2", "--strategy", strategy]
    return ["align", str(trial.folder / "in"), str(trial.out), *options]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT_ENGINE), os.environ.get("PYTHONPATH", "")])}


@contextmanager
def _running(trial: Trial, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """It is waited for at the end; then it has ended in time, said nothing raw, and left nobody."""
    with (trial.folder / "said").open("wb") as said:
        process = subprocess.Popen([*PREFORK, *command], stdout=said, stderr=subprocess.STDOUT, env=_environment())
    family: set[int] = set()
    try:
        yield process
        until = time.monotonic() + _LIMIT
        while process.poll() is None and time.monotonic() < until:
            family |= {child.pid for child in _find_family(process.pid)}
            time.sleep(0.05)
        if process.returncode is None:
            living = ", ".join(f"{_name(child)}: {child.status()}" for child in _find_family(process.pid))
            printed = (trial.folder / "said").read_text(errors="replace")[-1000:]
            trial.wrong.append(f"hangs: still there after {_LIMIT:.0f} s; {living}; {printed}")
    finally:
        family |= {child.pid for child in _find_family(process.pid)}
        if process.poll() is None:
            process.kill()
            process.wait()
    if left := wait_until_gone(sorted(family), 5):
        trial.wrong.append(f"left {len(left)} processes")
    _check_words(trial, (trial.folder / "said").read_text(errors="replace"))


def _run(trial: Trial, command: Sequence[str]) -> Ending:
    with _running(trial, command) as process:
        pass
    return _read_ending(process.returncode or 0, (trial.folder / "said").read_text(errors="replace"))


def _read_ending(status: int, said: str) -> Ending:
    events = []
    for line in said.splitlines():
        if line.startswith('{"event"'):
            try:
                events.append(json.loads(line))
            except ValueError:  # cut off by a signal
                continue
    failed = {event["id"]: event["reason"] for event in events if event["event"] == "failed"}
    failed |= {name: reason for e in events if e["event"] == "summary" for name, reason in e["failed"].items()}
    return Ending(status, said, failed, [event["id"] for event in events if event["event"] == "done"])


def _check_words(trial: Trial, said: str) -> None:
    ending = _read_ending(0, said)
    for job, reason in ending.failed.items():
        if not reason.strip() or _BARE.match(reason.strip()) or _TRACEBACK in reason:
            trial.wrong.append(f"no clear reason for {job}: {reason!r}")
    for line in said.splitlines():
        if line.startswith("prefork: ") and _BARE.match(line.removeprefix("prefork: ").strip()):
            trial.wrong.append(f"no clear reason: {line}")


def _finish(trial: Trial, command: Sequence[str]) -> None:
    """The same command, until all is done."""
    for _ in range(3):
        ending = _run(trial, command)
        if ending.status == 0:
            return
    trial.wrong.append(f"not done when it was run again: {ending.said[-500:]}")


def _compare(trial: Trial, command: Sequence[str]) -> None:
    """With a calm run on the inputs as they are now; and nothing but outputs has been left."""
    calm = trial.folder / "calm"
    ending = _run(trial, [*command[:2], str(calm), *command[3:]])
    if ending.status != 0:
        trial.wrong.append(f"a calm run has failed: {ending.said[-500:]}")
    expected, found = read_outputs(calm), read_outputs(trial.out)
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            what = "missing" if name not in found else "of nobody" if name not in expected else "another"
            trial.wrong.append(f"output {name}: {what}")


def _send_signal(trial: Trial, process: subprocess.Popen[bytes]) -> None:
    family = _find_family(process.pid)
    if process.poll() is not None:
        return
    if trial.random.random() < 0.1:  # that mostly ends it
        name, who = trial.random.choice(ENDING), process.pid
        trial.done.append(f"{name} to the command")
    elif not family:
        return
    else:
        child = trial.random.choice(family)
        name, who = trial.random.choice(SIGNALS), child.pid
        trial.done.append(f"{name} to {_name(child)}, one of {len(family)}")
    try:
        os.kill(who, getattr(signal, name))
    except ProcessLookupError:
        trial.done.append("which had just ended")
        return
    trial.count += 1


def _find_family(pid: int) -> list[psutil.Process]:
    try:
        return sorted(find_children(pid, recursive=True), key=lambda child: child.pid)
    except psutil.NoSuchProcess:
        return []


def _name(child: psutil.Process) -> str:
    """By the module that it was started for; what a zygote has forked looks like it."""
    try:
        parent, words = child.parent(), child.cmdline()
        forked = parent is not None and parent.cmdline() == words
    except psutil.NoSuchProcess:
        return "one that has just ended"
    module = next((word for word in words if word.startswith("work.")), "one that has ended")
    return f"{'a child of ' if forked else ''}{module}"


def _mutate(data: bytes, dice: random.Random, alphabet: bytes) -> bytes:
    """alphabet: most of what is written into it, so that it stays of its kind."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        place = dice.randrange(len(changed)) if changed else 0
        if dice.random() < 0.5:
            place = min(place, dice.randrange(200))  # headers
        length = dice.choice([1, 1, 1, 4, 40, 400])
        how = dice.choice(["change", "change", "lose", "double", "cut"])
        piece = changed[place : place + length]
        if how == "change":
            known = bytes(range(256)) if dice.random() < 0.1 else alphabet
            changed[place : place + length] = bytes(dice.choices(known, k=len(piece)))
        elif how == "lose":
            del changed[place : place + length]
        elif how == "double":
            changed[place:place] = piece
        elif dice.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
