"""Whether what is kept is what would be computed: a sample is computed again, and its bytes are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path

from prefork.cache.schema import SchemaError, find_schema
from prefork.cache.store import Kind, Reader, sample_keys
from prefork.engines.audio.selection import Selection
from prefork.engines.base import Job, Output
from prefork.engines.batching import Batching
from prefork.engines.text import formats
from prefork.engines.text.document import Document
from prefork.pool.runtime import Runtime
from prefork.run.fingerprints import complete_all
from prefork.run.problems import find_reason
from prefork.run.result_cache import KeptDocument, KeptOutputs, Recipe, make_document_key, make_outputs_key

_CHANGED = "another version, model or file would be used now"


class Verdict(StrEnum):
    """What became of an entry. STALE: it would not be used now, so that there is nothing to compare."""

    SAME = "same"
    DIFFERENT = "DIFFERENT"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of one document. source: the file that it was made of. reason: why there was nothing to compare."""

    source: str
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A document that is to be made again. key: under which it is kept. texts: the files that were written of it, if
    they are kept too."""

    key: bytes
    recipe: Recipe
    document: Document
    texts: tuple[str, ...] | None


def verify_sample(path: Path, most: int) -> Iterator[Comparison]:
    """Of so many documents, chosen at random. Raises Unusable, LoadError."""
    reader = Reader(path)
    try:
        sampled = [_read(reader, key) for key in (sample_keys(path, Kind.DOCUMENT, most) if path.exists() else ())]
    finally:
        reader.close()
    known = sorted(filter(None, sampled), key=lambda one: repr((one.recipe.pipeline, one.recipe.surroundings)))
    for _, group in groupby(known, key=lambda one: (one.recipe.pipeline, one.recipe.surroundings)):
        yield from _verify_together(list(group))


def _read(reader: Reader, key: bytes) -> _Sampled | None:
    found = reader.find(key)
    try:
        kept: KeptDocument | None = find_schema(KeptDocument).decode(found.value) if found is not None else None
        if kept is None:
            return None
        outputs = reader.find(make_outputs_key(key, kept.recipe.outputs))
        texts = find_schema(KeptOutputs).decode(outputs.value).texts if outputs is not None else None
    except SchemaError:  # of an older prefork
        return None
    return _Sampled(key, kept.recipe, kept.document, texts)


def _verify_together(sampled: list[_Sampled]) -> Iterator[Comparison]:
    """Those that were made by the same engines, in the same surroundings."""
    recipe = sampled[0].recipe
    where, pipeline = recipe.surroundings, recipe.make_pipeline()
    jobs: dict[str, tuple[Job, _Sampled]] = {}
    for number, one in enumerate(sampled):
        try:
            jobs[str(number)] = (_make_job(one.recipe), one)
        except OSError as error:
            yield Comparison(one.recipe.source, Verdict.STALE, f"{error.strerror}: {error.filename}")
    if not jobs:
        return
    cpu = where.device == "cpu"
    batching = Batching(max_audio_len=where.longest)
    with Runtime(pipeline, workers=1, threads=where.threads, force_cpu=cpu, batching=batching) as runtime:
        fingerprint = complete_all([stage.engine for stage in pipeline], runtime.fingerprints)
        current = {}
        for job, one in jobs.values():
            if make_document_key(job, pipeline, fingerprint, [where] * len(pipeline)) == one.key:
                current[job] = one
            else:
                yield Comparison(one.recipe.source, Verdict.STALE, _CHANGED)
        for result in runtime.map(list(current)):
            yield _compare(result.job, current[result.job], result.document, result.error)


def _make_job(recipe: Recipe) -> Job:
    """Raises OSError."""
    media = Path(recipe.media) if recipe.media is not None else None
    outputs = tuple(Output(name, Path(f"verified.{name}"), layout) for name, layout in recipe.outputs)
    selection = Selection(recipe.track, recipe.channels)
    job = Job(
        recipe.id, Path(recipe.source), media, outputs, recipe.seconds, selection=selection, language=recipe.language
    )
    return job.note_files()


def _compare(job: Job, one: _Sampled, document: Document | None, error: BaseException | None) -> Comparison:
    if document is None:
        return Comparison(one.recipe.source, Verdict.DIFFERENT, find_reason(error) if error is not None else "")
    made = formats.warn_of_losses(document, [output.format for output in job.outputs])
    schema = find_schema(Document)
    texts = tuple(formats.render(made, output.format, output.layout) for output in job.outputs)
    same = schema.encode(made) == schema.encode(one.document) and one.texts in (None, texts)
    return Comparison(one.recipe.source, Verdict.SAME if same else Verdict.DIFFERENT)
