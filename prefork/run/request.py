"""What a run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prefork.engines.audio.selection import Selection
from prefork.engines.batching import Batching
from prefork.engines.parquet.options import RowOptions
from prefork.engines.text.cues import CueLayout
from prefork.pool.pipeline import Intake, Pipeline, Residency
from prefork.pool.tasks import HangLimit
from prefork.run.result_cache import CacheRequest
from prefork.run.shards import Shard


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the user asked for. rows: `source` is a data set, and these of it are wanted."""

    source: Path
    target: Path
    command: str
    pipeline: Pipeline
    intake: Intake = Intake.PAIRS
    residency: Residency = Residency.ALL
    formats: tuple[str, ...] = ()
    media: Path | None = None
    workers: int | None = None
    threads: int | None = None
    strategy: str | None = None
    devices: tuple[str, ...] = ()
    batching: Batching | None = None
    force_cpu: bool = False
    no_mps: bool = False
    memory_limit: int | None = None
    mem_guard: bool = False
    memory_checkpoints: bool = False
    hang_limit: HangLimit = field(default_factory=HangLimit)
    redo: bool = False
    selection: Selection = field(default_factory=Selection)
    follow_links: bool = False
    layout: CueLayout = field(default_factory=CueLayout)
    language: str | None = None
    rows: RowOptions | None = None
    cache: CacheRequest = field(default_factory=CacheRequest)
    shard: Shard | None = None
