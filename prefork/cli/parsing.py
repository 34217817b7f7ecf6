"""What the values of options mean. Raises typer.BadParameter for those that mean nothing. Imports nothing heavy."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from prefork.cli.options import BatchingOptions, DataOptions, RunOptions, SubtitleOptions
from prefork.engines.audio.selection import Selection
from prefork.engines.batching import Batching
from prefork.engines.parquet.options import RowOptions
from prefork.engines.text.cues import CueLayout
from prefork.engines.text.languages import get_short_code, is_language_code

if TYPE_CHECKING:
    from prefork.run.result_cache import CacheRequest
    from prefork.run.shards import Shard

_LEAST_BYTES = 1_000_000  # of memory; fewer without a unit are a mistake


def parse_language(value: str | None) -> str | None:
    """A code of ISO 639, with or without a region."""
    if value is None or is_language_code(value):
        return value
    guess = get_short_code(value[:3].lower())
    meant = f"; did you mean {guess}?" if len(value) > 3 and len(guess) == 2 else ""
    raise typer.BadParameter(f"--lang takes a code of ISO 639 such as en, deu or zh, not {value!r}{meant}")


def parse_count(option: str, value: str) -> int | None:
    """A number of at least 1; None for auto."""
    if value == "auto":
        return None
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise typer.BadParameter(f"{option} takes auto or a whole number of at least 1, not {value!r}")
    return int(value)


def parse_seconds(option: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{option} takes a number of seconds above 0, not {value}")
    return value


def parse_forks(value: str | None) -> tuple[list[str], list[str]]:
    """The ways to fork that are tried, and those that must be safe."""
    both = ["prefork", "plain"]
    if value is None:
        return both, both[:1]
    if value not in (*both, "both"):
        raise typer.BadParameter(f"--fork takes prefork, plain or both, not {value!r}")
    chosen = both if value == "both" else [value]
    return chosen, chosen


def parse_size(option: str, value: str | None) -> int | None:
    """Bytes: a number with a unit, decimal (GB, or G) or binary (GiB), or a share of what the machine allows.

    >>> parse_size("--memory-limit", "1.5GiB")
    1610612736
    """
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]?)(i?)B?", value.strip(), re.IGNORECASE)
    number = float(found[1]) if found else 0.0
    if found is None or number <= 0 or (found[3] and found[2] in ("", "%")) or (found[2] == "%" and number > 100):
        raise typer.BadParameter(f"{option} takes a size such as 3GB, 512MiB or 50%, not {value!r}")
    if found[2] == "%":
        from prefork.platform_matrix.memory import read_memory

        return int(read_memory().limit * number / 100)
    if not found[2] and number < _LEAST_BYTES:
        raise typer.BadParameter(
            f"{option} {value} is {value} bytes, in which nothing can run; did you mean {value}GB?"
        )
    return int(number * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


def make_cache_request(options: RunOptions, longest: int | None) -> CacheRequest:
    """What becomes of results. longest: as CacheRequest has it."""
    from prefork.cache.store import Limits
    from prefork.run.result_cache import CacheMode, CacheRequest

    if options.cache not in list(CacheMode):
        raise typer.BadParameter(f"--cache (PREFORK_CACHE) takes {', '.join(CacheMode)}, not {options.cache!r}")
    size = parse_size("--cache-limit", options.cache_limit) if "%" not in options.cache_limit else None
    if size is None:
        raise typer.BadParameter(f"--cache-limit takes a size such as 2GB or 500MB, not {options.cache_limit!r}")
    if not 0 < options.cache_keep < float("inf"):
        raise typer.BadParameter(f"--cache-keep takes a number of days above 0, not {options.cache_keep}")
    return CacheRequest(CacheMode(options.cache), Limits(size, options.cache_keep * 86400), longest)


def parse_selection(track: int | None, channel: str | None) -> Selection:
    """What is read of recordings.

    >>> parse_selection(None, "mix"), parse_selection(2, "1")
    (Selection(track=None, channels=()), Selection(track=2, channels=(1,)))
    """
    if track is not None and track < 1:
        raise typer.BadParameter(f"--track takes a whole number of at least 1, not {track}")
    if (
        channel is not None
        and channel != "mix"
        and (not channel.isdecimal() or not channel.isascii() or not int(channel))
    ):
        raise typer.BadParameter(f"--channel takes mix or a whole number of at least 1, not {channel!r}")
    return Selection(track, None if channel is None else () if channel == "mix" else (int(channel),))


def parse_shard(value: str | None, rows: RowOptions | None) -> Shard | None:
    """Which part of IN is to be done; None for all."""
    if value is None:
        return None
    from prefork.run.shards import find_shard

    if rows is not None and rows.limit is not None:
        raise typer.BadParameter("--limit counts the rows of all shards, which no shard can; leave it out with --shard")
    try:
        return find_shard(value, os.environ)
    except ValueError as error:
        raise typer.BadParameter(f"--shard {error}") from error


def make_layout(options: SubtitleOptions) -> CueLayout:
    """How subtitles look."""
    for option, value, least in (("width", options.max_line_width, 8), ("count", options.max_line_count, 1)):
        if value < least:
            raise typer.BadParameter(f"--max-line-{option} takes a whole number of at least {least}, not {value}")
    return CueLayout(**asdict(options))


def parse_strategy(value: str) -> str | None:
    """The name of a strategy; None for auto."""
    from prefork.platform_matrix.matrix import Strategy

    if value != "auto" and value not in list(Strategy):
        raise typer.BadParameter(f"--strategy takes auto, {', '.join(Strategy)}, not {value!r}")
    return None if value == "auto" else value


def parse_devices(value: str | None, option: str = "--devices") -> tuple[str, ...]:
    """Names of devices; none for what there is."""
    from prefork.platform_matrix.selection import parse_devices as parse

    try:
        return () if value is None else parse(value)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def make_batching(options: BatchingOptions) -> Batching:
    """How segments are batched. What is not given is as `Batching` has it."""
    try:
        batching = Batching(**{name: value for name, value in asdict(options).items() if value is not None})
        batching.check_for_jobs()
    except ValueError as error:
        text = re.sub(r"`([a-z_]+)`", lambda found: f"--{found[1].replace('_', '-')}", str(error))
        raise typer.BadParameter(text) from error
    return batching


def make_row_options(formats: list[str] | None, options: DataOptions, batching: BatchingOptions) -> RowOptions | None:
    """What of a data set is wanted; None if IN is none. The lengths that batches may have are those that rows must."""
    given = {name: value for name, value in asdict(options).items() if value}
    names = [name for text in formats or () for name in text.replace(",", " ").split()]
    if "parquet" not in names:
        if given:
            option = f"--{next(iter(given)).replace('_', '-')}"
            raise typer.BadParameter(f"{option} is for data sets: give --format parquet too, and a parquet file as IN")
        return None
    if set(names) != {"parquet"}:
        raise typer.BadParameter("--format parquet is for data sets, whose results have no other format")
    if options.limit is not None and options.limit < 1:
        raise typer.BadParameter(f"--limit takes a whole number of at least 1, not {options.limit}")
    return RowOptions(**given, min_audio_len=batching.min_audio_len, max_audio_len=batching.max_audio_len)
