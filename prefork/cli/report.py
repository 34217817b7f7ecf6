"""What a run shows: a live view on a terminal, plain lines elsewhere, JSON lines for a machine, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prefork.pool.jobs import JobResult
from prefork.run.problems import strip_name
from prefork.run.summary import GPULoad, Progress, Report, Summary
from prefork.wording import format_duration, make_printable

MEGABYTE = 1e6
_MANY = 200  # files, from which there is not a line for each
_MOST_MACHINES = 20  # of a cluster, that have a line each
_GONE = ("refused", "lost", "left")
_TELL_SECONDS = 10.0  # between two lines that say how far it is


class QuietReport(Report):
    """Failures alone, on stderr."""

    def end(self, summary: Summary) -> None:
        for job, reason in summary.failed.items():
            print(f"{make_printable(job)}: {make_printable(reason)}", file=sys.stderr)


class JSONReport(Report):
    """One JSON object per line on stdout: events `note`, `done`, `failed` and, at the end, `summary`."""

    def note(self, text: str) -> None:
        self._print(event="note", text=text)

    def finish_job(self, result: JobResult, reason: str | None) -> None:
        if reason is not None:
            self._print(event="failed", id=result.job.id, reason=reason)
            return
        files = [file.path for file in result.files]
        seconds = result.job.seconds if result.job.media is not None else 0.0
        self._print(event="done", id=result.job.id, audio_seconds=seconds, files=files, warnings=list(result.warnings))

    def end(self, summary: Summary) -> None:
        self._print(event="summary", **asdict(summary), speed=summary.speed)

    def _print(self, **event: Any) -> None:
        sys.stdout.write(json.dumps(event) + "\n")  # in one piece: notes come from another thread
        sys.stdout.flush()


class PlainReport(Report):
    """One line for each finished file, or, of many, for those that failed or have warnings; and a table at the end. Of
    many, or on a terminal that cannot be drawn over, such as that of a notebook's cell, a line now and then that says
    how far it is."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = self._told = time.monotonic()
        self._get_progress: Callable[[], Progress] | None = None
        self._is_many = False  # files

    def load(self, names: Sequence[str]) -> None:
        if self.console.is_terminal:
            self.print_line(describe_loading(names), "dim")

    def begin(self, get_progress: Callable[[], Progress]) -> None:
        self._get_progress = get_progress
        self._is_many = get_progress().files_total >= _MANY
        self.started = self._told = time.monotonic()

    def refresh(self) -> None:
        if self.console.is_terminal:
            self._tell()

    def _tell(self) -> None:
        """How far it is, if it is time to; to find that out takes longer the more files there are."""
        now = time.monotonic()
        if self._get_progress is not None and now - self._told >= _TELL_SECONDS:
            self._told = now
            self.print_line(describe_progress(self._get_progress(), now - self.started), "dim")

    def print_line(self, text: str, style: str = "") -> None:
        """One line, however long."""
        self.console.print(Text(make_printable(text), style), soft_wrap=True)

    def note(self, text: str) -> None:
        self.print_line(text, "yellow")

    def finish_job(self, result: JobResult, reason: str | None) -> None:
        if reason is not None:
            self.print_line(f"failed  {result.job.id}", "red")  # the reason stands at the end, where it is found
            return
        warnings = len(result.warnings)
        if self._is_many and not warnings:
            self._tell()
            return
        more = f"  {warnings} warning{'s' * (warnings != 1)}" if warnings else ""
        self.print_line(f"done    {result.job.id}  {_measure(result)}{more}")

    def end(self, summary: Summary) -> None:
        for warning, jobs in _gather(summary.warnings).items():
            named = ", ".join(jobs[:3]) + (", ..." if len(jobs) > 3 else "")
            where = named if len(jobs) == 1 else f"{len(jobs)} files ({named})"
            self.print_line(f"warning {where}: {warning}", "yellow")
        for name, reason in summary.notices.items():
            self.print_line(f"unused  {name}: {reason}", "dim")
        if self.console.is_terminal:
            self.console.print(tabulate(summary))
        else:
            for name, value in list_rows(summary):
                self.print_line(f"  {name:<9}  {value}")
        for job, reason in summary.failed.items():
            self.print_line(f"failed  {job}: {reason}", "red")


class LiveReport(PlainReport):
    """The plain lines, and below them, as long as the run lasts, a line for each worker and a bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._doing = "looking for files"
        self._live = Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._draw)
        self._live.start()

    def load(self, names: Sequence[str]) -> None:
        self._get_progress = None
        self._doing, self.started = describe_loading(names), time.monotonic()

    def _draw(self) -> RenderableType:
        elapsed = time.monotonic() - self.started
        if self._get_progress is None:
            return Text(f"{self._doing}, {elapsed:.0f} s")
        return draw(self._get_progress(), elapsed)

    def _tell(self) -> None:
        """It draws itself."""

    def close(self) -> None:
        self._live.stop()


def _gather(warnings: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """For each warning the jobs that have it."""
    found: dict[str, list[str]] = {}
    for job, texts in warnings.items():
        for text in texts:
            found.setdefault(strip_name(job, text), []).append(job)
    return found


def describe_loading(names: Sequence[str]) -> str:
    return f"loading the models ({', '.join(names)})" if names else "loading the models"


def draw(progress: Progress, elapsed: float) -> Group:
    """The live view: what each worker does, and how far the whole is."""
    table = Table.grid(padding=(0, 2))
    for worker in progress.workers:
        memory = f"{worker.memory.uss / MEGABYTE:.0f} MB" if worker.memory else ""
        position = format_duration(worker.position) if worker.label and progress.timed else ""
        label = Text(make_printable(worker.label) or "idle", overflow="ellipsis", no_wrap=True)
        table.add_row(Text(f"worker {worker.slot}", style="cyan"), label, position, Text(memory, style="dim"))
    for machine in progress.machines[:_MOST_MACHINES]:
        speed = f"{machine.seconds / elapsed:.1f} s/s" if machine.seconds and elapsed and progress.timed else ""
        busy = f"{machine.busy} of {_count(machine.workers, 'worker')} busy" if machine.workers else ""
        memory = f"{machine.memory / MEGABYTE:.0f} MB" if machine.memory else ""
        table.add_row(
            Text(make_printable(machine.name), style="cyan"),
            Text(machine.state),
            busy,
            _count(machine.files, "file"),
            Text(memory, style="dim"),
            speed,
        )
    if len(progress.machines) > _MOST_MACHINES:
        table.add_row(f"and {len(progress.machines) - _MOST_MACHINES} more")
    left = _estimate_left(progress, elapsed)
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=max(progress.audio_total, 1e-9), completed=progress.audio_done, width=40),
        f"{progress.files_done}/{progress.files_total} files",
        f"{format_duration(progress.audio_done)} of {format_duration(progress.audio_total)}" if progress.timed else "",
        f"{format_duration(left)} left" if left is not None else "",
    )
    return Group(table, bar)


def _estimate_left(progress: Progress, elapsed: float) -> float | None:
    """Seconds; None as long as nothing is done."""
    done, total = progress.audio_done, progress.audio_total
    return elapsed * (total - done) / done if done else None


def describe_progress(progress: Progress, elapsed: float) -> str:
    """The live view's bar in words."""
    left = _estimate_left(progress, elapsed)
    parts = [f"{progress.files_done}/{progress.files_total} files"]
    if progress.timed:
        parts.append(f"{format_duration(progress.audio_done)} of {format_duration(progress.audio_total)}")
    return ", ".join([*parts, *([f"{format_duration(left)} left"] if left is not None else [])])


def tabulate(summary: Summary) -> Table:
    """The table that ends a run."""
    table = Table(show_header=False, box=None, padding=(0, 2), title_justify="left")
    for name, value in list_rows(summary):
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def list_rows(summary: Summary) -> list[tuple[str, str]]:
    """Names and values of the table."""
    return [(summary.unit, _count_files(summary)), *_list_figures(summary), ("results", make_printable(summary.target))]


def _list_figures(summary: Summary) -> list[tuple[str, str]]:
    """Names and values, of a run that had something to do."""
    if not summary.workers:
        return _list_kept(summary)
    return [
        *([("audio", f"{summary.audio_seconds / 60:.1f} min")] if summary.audio_seconds else []),
        *([("text", f"{summary.utterances:,} utterances, {summary.words:,} words")] if summary.words else []),
        *([("timing", _describe_recovery(summary.recovery))] if summary.recovery else []),
        ("time", f"{summary.wall_seconds:.1f} s, including {summary.load_seconds:.1f} s to load the models"),
        ("speed", f"{summary.speed:.0f} {'audio seconds' if summary.audio_seconds else 'words'} per second"),
        ("workers", _count_workers(summary)),
        *_list_machines(summary),
        ("weights", f"{summary.weights / MEGABYTE:.0f} MB, {_describe_copies(summary)}"),
        ("private", _describe_private(summary)),
        ("memory", _describe_memory(summary)),
        *(("gpu", _describe_gpu(gpu)) for gpu in summary.gpus),
        *_list_kept(summary),
        *([("shortage", _describe_shortage(summary))] if summary.throttles or summary.starved else []),
    ]


def _list_machines(summary: Summary) -> list[tuple[str, str]]:
    """Of a cluster, those that have done most."""
    machines = sorted(summary.machines, key=lambda machine: -machine.files)
    rows = [
        (
            "machine" if machine.state not in _GONE else machine.state,
            make_printable(
                f"{machine.name}: {_count(machine.workers, 'worker')}, {_count(machine.files, 'file')}"
                + (f", {format_duration(machine.seconds)}" if summary.audio_seconds else "")
            ),
        )
        for machine in machines[:_MOST_MACHINES]
    ]
    more = len(machines) - _MOST_MACHINES
    return [*rows, ("machines", f"{more} more")] if more > 0 else rows


def _describe_memory(summary: Summary) -> str:
    if summary.machines:
        return f"{summary.total / MEGABYTE:.0f} MB on the machine that took most, shared pages counted once"
    return f"{summary.total / MEGABYTE:.0f} MB in total, shared pages counted once"


def _list_kept(summary: Summary) -> list[tuple[str, str]]:
    """What was not computed, because it was kept, and what that saved."""
    parts = [f"{summary.kept_files} of {summary.done} files"] if summary.kept_files else []
    if summary.kept_segments:
        parts.append(f"{summary.kept_segments:,} of {summary.segments:,} segments")
    if not parts:
        return []
    return [("cache", f"{' and '.join(parts)} had been computed before, in {format_duration(summary.saved_seconds)}")]


def _measure(result: JobResult) -> str:
    """How long a job's recording is, or how many words there were to analyse."""
    if result.job.media is not None or result.document is None:
        return format_duration(result.job.seconds)
    return f"{result.count_tagged()['words']:,} words"


def _describe_recovery(recovery: Mapping[str, int]) -> str:
    """What became of utterances without times."""
    timed, found, missing = (recovery.get(name, 0) for name in ("timed", "found", "missing"))
    if not found and not missing:
        return f"all {timed} utterances had times"
    parts = [f"{timed} utterances had times"] if timed else []
    parts += [f"{found} of {found + missing} without times were found in the recordings"]
    return ", ".join(parts)


def _describe_copies(summary: Summary) -> str:
    if not summary.shared:
        return "one copy for each worker"
    return "one copy for all workers" if summary.servers < 2 else "one copy for each server"


def _describe_private(summary: Summary) -> str:
    return f"{summary.private / MEGABYTE:.0f} MB in the largest worker"


def _describe_gpu(gpu: GPULoad) -> str:
    return f"{gpu.name}: busy {gpu.busy:.0f} %, at most {gpu.used / 1e9:.1f} GB of {gpu.memory / 1e9:.1f} GB used"


def _describe_shortage(summary: Summary) -> str:
    """What was done about too little memory."""
    parts = [f"no new task started for {summary.throttled:.0f} s"] if summary.throttles else []
    parts += [f"{summary.shrinks} worker{'s' * (summary.shrinks != 1)} stopped"] if summary.shrinks else []
    parts += [f"{_count(summary.starved, 'task')} lost their worker"] if summary.starved else []
    return ", ".join(parts)


def _count_files(summary: Summary) -> str:
    parts = [f"{summary.done} done"]
    parts += [f"{summary.skipped} done earlier"] if summary.skipped else []
    parts += [f"{len(summary.failed)} failed"] if summary.failed else []
    parts += [f"{summary.unfinished} left: repeat the command to continue"] if summary.unfinished else []
    return ", ".join(parts)


def _count_workers(summary: Summary) -> str:
    how = {"fork": "forked, ", "spawn": "spawned, ", "ipc": "forked, ", "server": "forked, "}.get(summary.strategy, "")
    text = f"{summary.workers}, {how}with {_count(summary.threads, 'thread')} each"
    if summary.servers == 1:
        text += f"; a server with {_count(summary.server_threads, 'thread')} holds the model"
    elif summary.servers:
        text += f"; {summary.servers} servers with {_count(summary.server_threads, 'thread')} each hold the model"
    if not summary.deaths:
        return text
    who = f" {'process' if summary.deaths == 1 else 'processes'}" if summary.servers else ""
    return f"{text}; {summary.deaths}{who} died and {'was' if summary.deaths == 1 else 'were'} replaced"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
