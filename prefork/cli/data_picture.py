"""What `prefork data describe` shows: tables, a histogram of lengths, and a picture of it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefork.cli.memlog_picture import check_picture
from prefork.data.description import Description, count_lengths
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.base import InputError
from prefork.wording import format_duration, make_printable

_BAR = 40  # characters of the longest bar
_MOST_LANGUAGES = 20


def to_json(found: Description) -> str:
    """One object; lengths as a histogram. Seconds, samples and bytes."""
    content = asdict(found)
    del content["lengths"]
    memory = {**asdict(found.memory), "total": found.memory.total}
    return json.dumps(
        {**content, "memory": memory, "seconds": found.seconds, "histogram": count_lengths(found.lengths)}, indent=2
    )


def show_description(console: Console, found: Description) -> None:
    lengths = found.lengths
    median, longest = lengths[len(lengths) // 2] / SAMPLE_RATE, lengths[-1] / SAMPLE_RATE
    passing = "" if found.passing == found.rows else f", {found.passing:,} of them pass"
    _show_rows(
        console,
        [
            ("files", f"{found.files:,}"),
            ("rows", f"{found.rows:,}{passing}"),
            ("audio", f"{found.seconds / 3600:.2f} h"),
            ("lengths", f"{lengths[0] / SAMPLE_RATE:.1f} s to {longest:.1f} s, median {median:.1f} s"),
        ],
    )
    if found.languages:
        console.print(_tabulate_languages(found))
    console.print(_tabulate_lengths(found))
    console.print(_tabulate_buckets(found))
    static, length, memory = found.static, found.length, found.memory
    parts = (memory.waiting, memory.loading, memory.decoded, memory.processes)
    waiting, loading, decoded, processes = (f"{size / 1e6:,.0f}" for size in parts)
    _show_rows(
        console,
        [
            ("LENGTH", f"{length.batches:,} batches, {length.padding:.1%} padding"),
            ("STATIC", f"{static.batches:,} batches, {static.padding:.1%} padding"),
            (
                "memory",
                f"{memory.total / 1e6:,.0f} MB: rows that wait {waiting}, fragments {loading}, decoded batches "
                f"{decoded}, processes {processes}",
            ),
            *(
                [
                    (
                        "time",
                        f"{format_duration(found.seconds / found.speed)} to decode it once, {found.speed:,.0f} audio "
                        f"seconds per second",
                    )
                ]
                if found.speed
                else []
            ),
        ],
    )
    for name, reason in found.problems.items():
        console.print(Text(make_printable(f"{name}: {reason}"), "yellow"), soft_wrap=True)


def _show_rows(console: Console, rows: list[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, "bold"), Text(value))
    console.print(table)


def _tabulate_languages(found: Description) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("language")
    table.add_column("hours", justify="right")
    listed = list(found.languages.items())
    for name, hours in listed[:_MOST_LANGUAGES]:
        table.add_row(Text(make_printable(name)), f"{hours:.2f}")
    if rest := listed[_MOST_LANGUAGES:]:
        table.add_row(f"{len(rest)} more", f"{sum(hours for _, hours in rest):.2f}")
    return table


def _tabulate_lengths(found: Description) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("seconds", justify="right")
    table.add_column("rows", justify="right")
    table.add_column("")
    bins = count_lengths(found.lengths)
    most = max(count for _, _, count in bins)
    for start, end, count in bins:
        table.add_row(f"{start:.1f} - {end:.1f}", f"{count:,}", "#" * -(-_BAR * count // most))
    return table


def _tabulate_buckets(found: Description) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold", title="LENGTH's buckets", title_justify="left")
    for heading in ("up to", "rows in a batch", "rows"):
        table.add_column(heading, justify="right")
    for bucket in found.buckets:
        table.add_row(f"{bucket.longest / SAMPLE_RATE:.1f} s", f"{bucket.batch_size:,}", f"{bucket.rows:,}")
    return table


def draw_lengths(found: Description, path: Path) -> None:
    """A histogram of lengths, with the limits of the buckets. path: ends in .png or .svg. Raises InputError."""
    check_picture(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=(10, 5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.hist([length / SAMPLE_RATE for length in found.lengths], bins=60, color="#4d4d4d")
        for bucket in found.buckets[:-1]:
            axes.axvline(bucket.longest / SAMPLE_RATE, color="#b2182b", linewidth=0.5)
        axes.set_xlabel("seconds; lines: limits of LENGTH's buckets")
        axes.set_ylabel("rows")
        figure.savefig(content, format=path.suffix[1:].lower())
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give another path for the picture") from error
