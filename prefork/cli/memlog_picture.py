"""What `prefork memlog` shows of a memory log: tables on the terminal, and a picture of memory over time."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefork.engines.base import InputError
from prefork.memory.figures import (
    EngineFigures,
    Figures,
    Spread,
    TaskPeak,
    follow,
    is_server,
    is_worker,
    list_throttled,
)
from prefork.memory.memlog import Event, Log
from prefork.platform_matrix.versions import find_requirement
from prefork.wording import format_duration, make_printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIGABYTE = 1e9
_LONGEST_NAME = 50  # characters of a model's name
_COLUMNS = 800  # times that are drawn; about as many as a picture has room for
_NAMED_WORKERS = 12  # more than these share one entry in the legend, and a ramp of colours
_FAR = 4.0  # a limit so many times above the peak would leave no room for what lies below it
_WEIGHTS, _REST, _LIMIT, _AVAILABLE, _THROTTLED = "#4d4d4d", "#b3b3b3", "#b2182b", "black", "#fee0b6"
_MARKS = {"shrink": ("v", "#542788", 0.97), "fail": ("X", "#b2182b", 0.93)}  # the last: how far up


def to_json(log: Log, figures: Figures) -> str:
    """One object: the figures (seconds and bytes), where they are from, and what was skipped there."""
    return json.dumps({"log": str(log.path), "skipped": log.skipped, **asdict(figures)}, indent=2)


def show_figures(console: Console, log: Log, figures: Figures) -> None:
    """What the run was, predicted against measured peaks by engine, and the files that took most."""
    _show_rows(console, _describe(log, figures))
    if figures.engines:
        console.print()
        console.print(_tabulate_engines(figures.engines))
        for engine in figures.engines:
            _print_line(console, f"worst prediction for {_name(engine)}: {_describe_worst(engine.worst)}")
    if figures.files:
        console.print()
        console.print(_tabulate_files(figures.files))
    if log.skipped:
        counts = ", ".join(f"{number} x {what}" for what, number in log.skipped.items())
        _print_line(console, f"skipped in the log: {counts}", "yellow")


def _describe(log: Log, figures: Figures) -> list[tuple[str, str]]:
    rows = [
        ("log", str(log.path)),
        ("engine", figures.engine),
        ("model", figures.model),
        ("dtype", figures.dtype),
        ("strategy", figures.strategy),
        ("workers", figures.workers),
        ("weights", _bytes(figures.weights)),
        ("limit", _bytes(figures.limit)),
        ("time", format_duration(figures.seconds) + (f" in {figures.runs} runs" if figures.runs > 1 else "")),
        ("memory", _bytes(figures.peak_total, " in total at the peak, shared pages counted once")),
        ("available", _bytes(figures.lowest_available, " at the lowest")),
        ("throttled", format_duration(figures.throttled_seconds)),
        ("tasks", f"{figures.completed} completed, {figures.fails} failed"),
        ("shrinks", figures.shrinks),
    ]
    return [(name, make_printable(str(value))) for name, value in rows if value is not None]


def _tabulate_engines(engines: Sequence[EngineFigures]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("engine\nmodel", overflow="fold")
    for heading in ("tasks\naudio", "private\npeak", "\nmedian", "\n95 %", "\nlargest", "within\n20 %", "\nabove"):
        table.add_column(heading, no_wrap=True, justify="left" if "peak" in heading else "right")
    for engine in engines:
        shares = (f"{engine.within20:.0%}", f"{engine.above:.0%}")
        table.add_row(_name(engine), str(engine.tasks), "predicted", *_spread(engine.predicted))
        model = Text(make_printable(engine.model or ""), "dim")
        table.add_row(model, format_duration(engine.audio), "measured", *_spread(engine.measured), *shares)
    return table


def _tabulate_files(files: Sequence[TaskPeak]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("largest files", overflow="fold")
    for heading in ("audio", "segment", "predicted", "measured"):
        table.add_column(heading, no_wrap=True, justify="right")
    for peak in files:
        audio = "" if peak.audio is None else format_duration(peak.audio)
        segment = "" if peak.segment is None else f"{peak.segment:.1f} s"
        table.add_row(
            Text(make_printable(peak.file or "")),
            audio,
            segment,
            _bytes(peak.predicted) or "",
            _bytes(peak.measured) or "",
        )
    return table


def _describe_worst(peak: TaskPeak) -> str:
    ratio = peak.measured / (peak.predicted or 1)
    return (
        f"{_bytes(peak.measured)}, {ratio:.2f} times the {_bytes(peak.predicted)} predicted, {peak.file or 'no file'}"
    )


def _name(engine: EngineFigures) -> str:
    return make_printable(" ".join(part for part in (engine.engine, engine.dtype) if part)) or "unknown"


def _spread(spread: Spread) -> list[str]:
    return [_bytes(value) or "" for value in (spread.median, spread.percentile95, spread.largest)]


def _bytes(value: float | None, more: str = "") -> str | None:
    if value is None:
        return None
    return (f"{value / GIGABYTE:.2f} GB" if value >= GIGABYTE else f"{value / 1e6:.0f} MB") + more


def _print_line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(make_printable(text), style), soft_wrap=True)


def _show_rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:  # a path stays in one piece, to be copied
        console.print(Text.assemble((name.ljust(width), "bold"), "  ", value), soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Stack:
    """What lies on what, from the bottom up, from each time on. Seconds since 1970, and bytes."""

    times: Sequence[float]
    weights: Sequence[int]
    rest: Sequence[int]  # libraries, and what zygote, supervisor and servers have of their own
    workers: Mapping[str, Sequence[int]]  # USS by process
    served: bool = False  # whether a server has the model


def pile_up(events: Sequence[Event]) -> Stack:
    """The sum of PSS over time, cut into what each worker has of its own and what is shared.

    A worker's PSS has its part of what is shared in it, which changes with every worker that comes or goes; so a
    worker counts with its USS, and what all PSS together have beyond that is shared. The weights are the lowest part
    of that. Of more states than can be drawn, the largest in each stretch of time is.
    """
    states = list(_thin_out(events))
    names = sorted({name for _, now in states for name in now if is_worker(name)}, key=_slot)
    own = {name: [_own(now[name]) if name in now else 0 for _, now in states] for name in names}
    total = [sum(sample.share for sample in now.values()) for _, now in states]
    shared = [max(0, all_of_it - sum(column)) for all_of_it, *column in zip(total, *own.values(), strict=True)]
    known = max((event.weights for event in events if event.weights is not None), default=0)
    weights = [min(known, size) for size in shared]
    rest = [size - part for size, part in zip(shared, weights, strict=True)]
    served = any(is_server(name) for _, now in states for name in now)
    return Stack([when for when, _ in states], weights, rest, own, served)


def _thin_out(events: Sequence[Event]) -> Iterator[tuple[float, Mapping[str, Event]]]:
    """The states; where they are more than can be drawn, the largest of each stretch of time, at its begin."""
    begin, end = min(event.time for event in events), max(event.time for event in events)
    width = (end - begin) / _COLUMNS if len(events) > _COLUMNS else 0.0
    edge = begin
    largest: dict[str, Event] = {}
    last: dict[str, Event] = {}
    for when, now in follow(events):
        if not width:
            yield when, dict(now)
            continue
        while when >= edge + width:
            yield edge, largest
            largest, edge = last, edge + width
        last = dict(now)
        if _total(last) > _total(largest):
            largest = last
    if width:
        yield edge, largest
        yield end, {}


def _total(now: Mapping[str, Event]) -> int:
    return sum(sample.share for sample in now.values())


def _own(sample: Event) -> int:
    return min(sample.uss or 0, sample.share)


def _slot(process: str) -> tuple[int, str]:
    number = re.search(r"\d+", process)
    return (int(number[0]) if number else -1, process)


def check_picture(path: Path) -> None:
    """Raises InputError if no picture can be written under that name, or there is nothing to draw it with."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{path}: pictures are PNG or SVG; give a name that ends in .png or .svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(f"a picture needs matplotlib: pip install {find_requirement('matplotlib')}") from error


def draw_picture(log: Log, figures: Figures, path: Path) -> None:
    """Memory over time: the shared weights, on them the libraries, on them each worker; the limit as a line.

    path: ends in .png or .svg. Raises InputError if it cannot be written, or the log has no samples.
    """
    check_picture(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if figures.peak_total is None:
        raise InputError(f"{log.path}: has no memory samples to draw; give the log of a run that took samples")
    content = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=(12, 6.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw(axes, log.events, figures)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, fontsize=10)
        figure.savefig(content, format=path.suffix[1:].lower())
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give another path for the picture") from error


def _draw(axes: Axes, events: Sequence[Event], figures: Figures) -> None:
    scale = _Scale.fit(events)
    top = _draw_stack(axes, pile_up(events), scale)
    limit = None if figures.limit is None else figures.limit / GIGABYTE
    if limit is not None and limit <= _FAR * top:
        _draw_steps(axes, events, scale, "available", color=_AVAILABLE, linewidth=1, label="available")
        label = f"limit {limit:.2f} GB"
        _draw_steps(axes, events, scale, "limit", color=_LIMIT, linewidth=1.5, linestyle="--", label=label)
        top = max(top, limit)
    elif limit is not None:
        axes.text(
            0.01,
            0.98,
            f"limit {limit:.2f} GB, far above this picture",
            transform=axes.transAxes,
            va="top",
            color=_LIMIT,
        )
    _draw_incidents(axes, events, scale)
    title = axes.set_title(_entitle(figures), loc="left", fontsize=13)
    title.set_parse_math(False)  # a $ in a model's name is no formula
    axes.set(xlabel=f"time ({scale.unit})", ylabel="memory (GB)")
    axes.set_xlim(0, scale.place(scale.end) or 1)
    axes.set_ylim(0, 1.15 * top)
    axes.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where on the axis of time an event stands."""

    begin: float
    end: float
    unit: str
    seconds: int  # of one unit

    @classmethod
    def fit(cls, events: Sequence[Event]) -> _Scale:
        begin, end = min(event.time for event in events), max(event.time for event in events)
        for unit, seconds in (("h", 3600), ("min", 60)):
            if end - begin > 3 * seconds:
                return cls(begin, end, unit, seconds)
        return cls(begin, end, "s", 1)

    def place(self, when: float) -> float:
        return (when - self.begin) / self.seconds


def _draw_stack(axes: Axes, stack: Stack, scale: _Scale) -> float:
    """Returns its height in GB."""
    from matplotlib import colormaps

    names = list(stack.workers)
    many = len(names) > _NAMED_WORKERS
    ramp = colormaps["viridis" if many else "Paired"]
    colours = [ramp(slot / (len(names) - 1)) if many else ramp(slot) for slot in range(len(names))]
    labels = list(names)
    if many:
        labels = ["_nolegend_"] * len(names)
        labels[len(names) // 2] = f"{names[0]} (dark) to\n{names[-1]} (light)"
    others = "libraries, zygote,\nsupervisor and server" if stack.served else "libraries, zygote\nand supervisor"
    bands = [[size / GIGABYTE for size in band] for band in (stack.weights, stack.rest, *stack.workers.values())]
    axes.stackplot(
        [scale.place(when) for when in stack.times],
        bands,
        labels=["weights" if stack.served else "shared weights", others, *labels],
        colors=[_WEIGHTS, _REST, *colours],
        step="post",
        linewidth=0,
        antialiased=False,  # or there are hairlines between them
        rasterized=many,  # their outlines would make an SVG of many megabytes
    )
    return max(map(sum, zip(*bands, strict=True)))


def _draw_steps(axes: Axes, events: Sequence[Event], scale: _Scale, field: str, **style: Any) -> None:
    from matplotlib import patheffects

    points = [(event.time, value) for event in events if (value := getattr(event, field)) is not None]
    if points:
        points.append((scale.end, points[-1][1]))
        times, sizes = zip(*sorted(points, key=itemgetter(0)), strict=True)
        values = [size / GIGABYTE for size in sizes]
        halo = [patheffects.withStroke(linewidth=3, foreground="white")]
        axes.step([scale.place(when) for when in times], values, where="post", path_effects=halo, **style)


def _draw_incidents(axes: Axes, events: Sequence[Event], scale: _Scale) -> None:
    """What was throttled is shaded; shrinks and failures are marked at the upper edge."""
    across = axes.get_xaxis_transform()
    spans = [(scale.place(begin), scale.place(end) - scale.place(begin)) for begin, end in list_throttled(events)]
    if spans:
        axes.broken_barh(spans, (0, 1), transform=across, color=_THROTTLED, linewidth=0.5, zorder=0, label="throttled")
    for name, (marker, colour, height) in _MARKS.items():
        times = [scale.place(event.time) for event in events if event.event == name]
        if times:
            axes.vlines(times, 0, height, transform=across, color=colour, linewidth=0.6)
            label, heights = f"{name} ({len(times)})", [height] * len(times)
            axes.scatter(times, heights, s=50, c=colour, marker=marker, transform=across, zorder=5, label=label)


def _entitle(figures: Figures) -> str:
    model = make_printable(figures.model or "")
    model = model if len(model) <= _LONGEST_NAME else f"…{model[-_LONGEST_NAME:]}"
    workers = f"{figures.workers} worker{'s' * (figures.workers != 1)}" if figures.workers else ""
    parts = [figures.engine, model, figures.dtype, figures.strategy, workers]
    return "  ·  ".join(make_printable(part) for part in parts if part)
