"""A folder of recordings and transcripts as a parquet file, which Hugging Face's datasets and fairseq2 read too.

id           string                            the recording's path, and the utterance's number
audio        struct<bytes: binary, path>       the file itself, or an utterance as FLAC, mono, 16 kHz
audio_size   int64                             samples at 16 kHz
text         string                            what is said; null without a transcript
language     string                            ISO 639-3, as the transcript says; null if it does not
speaker      string                            of an utterance, as the transcript says
start, end   double                            of an utterance, seconds in its recording
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import numpy as np
from av.audio.frame import AudioFrame

from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.engines.base import InputError, Job
from prefork.engines.parquet.library import import_arrow
from prefork.engines.parquet.row_path import SUFFIX
from prefork.engines.text import formats
from prefork.engines.text.document import Document, Utterance
from prefork.outputs import OutputFolder
from prefork.platform_matrix.systems import SYSTEM
from prefork.pool.pipeline import Intake
from prefork.pool.runtime import Runtime
from prefork.run.corpus import Corpus, find_jobs
from prefork.run.problems import Problem, find_reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GROUP_BYTES = 64_000_000  # of recordings in a row group, and
_GROUP_ROWS = 1000  # rows, at the most


class Unit(StrEnum):
    """What a row is."""

    FILE = "file"
    UTTERANCE = "utterance"


@dataclass(frozen=True, slots=True)
class PackedRow:
    """As the columns above."""

    id: str
    audio: bytes
    path: str
    audio_size: int
    text: str | None = None
    language: str | None = None
    speaker: str | None = None
    start: float | None = None
    end: float | None = None


@dataclass(slots=True)
class PackResult:
    """problems: files that are not in it, or not whole, and why."""

    rows: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def pack(
    source: Path,
    target: Path,
    unit: Unit | None = None,
    *,
    media: Path | None = None,
    workers: int | None = None,
    follow_links: bool = False,
    advance: Callable[[int, int], None] = lambda _done, _total: None,
) -> PackResult:
    """Writes `target` whole or not at all. unit: by default utterances, of transcripts that have times, else files.
    media: where recordings are that do not lie beside their transcripts. advance: called with files done, and in all.
    Raises InputError if there is nothing to pack, or it cannot be written."""
    if target.suffix != SUFFIX:
        raise InputError(f"{target}: give a name that ends in {SUFFIX}")
    source, target = SYSTEM.extend(source), SYSTEM.extend(target)
    media = SYSTEM.extend(media) if media is not None else None
    corpus = _find(source, media, follow_links)
    result = PackResult(problems=[*corpus.problems, *corpus.notices])
    jobs = sorted(corpus.jobs, key=lambda job: job.id)
    with Runtime(workers=workers, force_cpu=True, command="pack") as runtime:

        def make(sink: BinaryIO) -> None:
            rows = _pack_all(runtime, jobs, unit, result, advance)
            _write(sink, rows, result)
            if not result.rows:
                why = result.problems[0] if result.problems else None
                raise InputError(
                    f"{source}: nothing of it can be packed" + (f": {why.id}: {why.reason}" if why else "")
                )

        OutputFolder(target.parent).write_by(PurePath(target.name), make)
    return result


def _find(source: Path, media: Path | None, follow_links: bool) -> Corpus:
    try:
        return find_jobs(source, None, media=media, intake=Intake.PAIRS, follow_links=follow_links)
    except InputError:
        if source.is_dir() and any(path.suffix.lower() in formats.TRANSCRIPTS for path in source.rglob("*")):
            raise
        return find_jobs(source, None, media=media, intake=Intake.RECORDINGS, follow_links=follow_links)


def _pack_all(
    runtime: Runtime,
    jobs: Sequence[Job],
    unit: Unit | None,
    result: PackResult,
    advance: Callable[[int, int], None],
) -> Iterator[PackedRow]:
    """In the order of the jobs, a few ahead."""
    ahead: deque[tuple[Job, Future[tuple[list[PackedRow], list[str]]]]] = deque()
    waiting = deque(jobs)
    most = 2 * runtime.plan.workers
    while waiting or ahead:
        while waiting and len(ahead) < most:
            job = waiting.popleft()
            ahead.append((job, runtime.submit(pack_job, job, unit)))
        job, future = ahead.popleft()
        try:
            rows, problems = future.result()
        except Exception as error:  # noqa: BLE001  what is wrong with one input costs no other
            result.problems.append(Problem(job.id, find_reason(error)))
            continue
        result.problems += [Problem(job.id, reason) for reason in problems]
        yield from rows
        advance(len(jobs) - len(waiting) - len(ahead), len(jobs))


def pack_job(job: Job, unit: Unit | None) -> tuple[list[PackedRow], list[str]]:
    """The rows of a recording, and what is missing of it. Raises InputError."""
    assert job.media is not None
    document = Document(())
    if job.source.suffix.lower() in formats.READABLE:
        document = formats.read(job.source, job.media)
    language = document.languages[0] if document.languages else None
    timed = [u for u in document.utterances if u.start is not None and u.end is not None and u.end > u.start]
    if unit is Unit.FILE or (unit is None and not timed):
        data = job.media.read_bytes()
        text = "\n".join(filter(None, map(_get_text, document.utterances))) or None
        size = round(job.seconds * SAMPLE_RATE)
        return [PackedRow(job.id, data, job.media.name, size, text, language)], []
    rows = []
    for number, utterance in enumerate(document.utterances):
        if utterance.start is None or utterance.end is None or utterance.end <= utterance.start:
            continue
        samples = read_audio(job.media, utterance.start, utterance.end, job.selection)
        if not len(samples):
            continue
        row = PackedRow(
            f"{job.id}/{number}",
            encode_flac(samples),
            f"{Path(job.id).stem}-{number}.flac",
            len(samples),
            _get_text(utterance) or None,
            utterance.language or language,
            utterance.speaker,
        )
        rows.append(replace(row, start=utterance.start, end=utterance.end))
    missing = sum(bool(utterance.words) for utterance in document.utterances) - sum(
        row.text is not None for row in rows
    )
    problems = [f"{missing} utterances have no times within the recording, and are left out"] if missing > 0 else []
    if not rows:
        raise InputError(f"{job.id}: its utterances have no times; find them with `prefork align`, or pack --unit file")
    return rows, problems


def _get_text(utterance: Utterance) -> str:
    return " ".join(word.text for word in utterance.words)


def encode_flac(samples: NDArray[np.float32]) -> bytes:
    """samples: (n,) at 16 kHz, rounded to 16 bits."""
    content = io.BytesIO()
    scaled = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    with av.open(content, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", format="s16")
        stream.codec_context.thread_count = 1
        frame = AudioFrame.from_ndarray(scaled[np.newaxis], "s16", "mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts = 0
        for part in (frame, None):
            for packet in stream.encode(part):
                container.mux(packet)
    return content.getvalue()


def _write(sink: BinaryIO, rows: Iterator[PackedRow], result: PackResult) -> None:
    arrow, parquet = import_arrow(), import_arrow("pyarrow.parquet")
    schema = _make_schema(arrow)
    # Recordings are compressed already, and none occurs twice.
    with parquet.ParquetWriter(
        sink, schema, compression={"audio.bytes": "none"}, use_dictionary=["language"]
    ) as writer:
        waiting: list[dict[str, Any]] = []
        size = 0

        def flush() -> None:
            if waiting:
                writer.write_table(arrow.Table.from_pylist(waiting, schema=schema))
                waiting.clear()

        for row in rows:
            waiting.append(_describe_row(row))
            result.rows += 1
            result.seconds += row.audio_size / SAMPLE_RATE
            size += len(row.audio)
            if size >= _GROUP_BYTES or len(waiting) >= _GROUP_ROWS:
                flush()
                size = 0
        flush()


def _describe_row(row: PackedRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in ("id", "audio_size", "text", "language", "speaker", "start", "end")}
    return {**values, "audio": {"bytes": row.audio, "path": row.path}}


def _make_schema(arrow: Any) -> Any:
    """With what tells Hugging Face's datasets that the audio is audio."""
    string, time = arrow.string(), arrow.float64()
    fields = [
        ("id", string),
        ("audio", arrow.struct([("bytes", arrow.binary()), ("path", string)])),
        ("audio_size", arrow.int64()),
        *((name, string) for name in ("text", "language", "speaker")),
        *((name, time) for name in ("start", "end")),
    ]
    kinds = {string: "string", time: "float64", arrow.int64(): "int64"}
    features = {name: {"dtype": kinds.get(kind), "_type": "Value"} for name, kind in fields}
    features["audio"] = {"_type": "Audio"}
    return arrow.schema(fields, {b"huggingface": json.dumps({"info": {"features": features}}).encode()})
