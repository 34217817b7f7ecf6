"""A run and the result cache: which jobs need not be run at all, what is kept of the others, and what the user is told.

A job whose files, engines and settings were all seen before is not given to anybody: its document is rendered here, by
a process that imports no torch. Segments of the others are looked up on their way: see `prefork.cache.pieces`.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from prefork.cache.folder import Unusable, find_file
from prefork.cache.identity import KnownModels, Surroundings, identify, make_models_key
from prefork.cache.keys import digest, digest_file
from prefork.cache.pieces import PieceCache, Savings, find_length
from prefork.cache.schema import SchemaError, find_schema
from prefork.cache.store import Entry, Kind, Limits, Store
from prefork.engines.base import InputError, Job
from prefork.engines.files import FileState
from prefork.engines.text import formats
from prefork.engines.text.cues import CueLayout
from prefork.engines.text.document import Document
from prefork.fingerprint import SETTLED_SECONDS
from prefork.outputs import OutputFolder
from prefork.platform_matrix.matrix import Plan
from prefork.pool.jobs import JobResult
from prefork.pool.pipeline import Pipeline, Stage
from prefork.run.computer import Computer
from prefork.run.headers import narrow

_RECHECKED = 50  # recordings, of which one is read again although nothing about it has changed


class CacheMode(StrEnum):
    """What a run does with results. refresh: it computes, and keeps what comes of it."""

    USE = "use"
    REFRESH = "refresh"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class CacheRequest:
    """What the user wants of the result cache. longest: samples of a segment, beyond which a job fails."""

    mode: CacheMode = CacheMode.OFF
    limits: Limits = field(default_factory=Limits)
    longest: int | None = None

    def refresh(self) -> CacheRequest:
        """The same, but nothing that is there is used."""
        return self if self.mode is CacheMode.OFF else replace(self, mode=CacheMode.REFRESH)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a document was made, so that it can be made again. pipeline: engines with their options, as JSON. outputs:
    formats that it was written in, and how."""

    pipeline: tuple[tuple[str, str], ...]
    id: str
    source: str
    media: str | None
    seconds: float
    track: int | None
    channels: tuple[int, ...] | None
    language: str
    outputs: tuple[tuple[str, CueLayout], ...]
    surroundings: Surroundings

    def make_pipeline(self) -> Pipeline:
        return tuple(Stage(engine, json.loads(options)) for engine, options in self.pipeline)


@dataclass(frozen=True, slots=True)
class KeptDocument:
    """What the last stage made of a job, as its formats are rendered from it."""

    recipe: Recipe
    document: Document


@dataclass(frozen=True, slots=True)
class KeptOutputs:
    """The files that were written of a document: to render it takes several times as long as to read them. document:
    what the user is told of it; without utterances, words and turns. tagged: as `Document.count_tagged` has it."""

    texts: tuple[str, ...]
    document: Document
    tagged: dict[str, int]

    @classmethod
    def of(cls, document: Document, texts: Sequence[str]) -> KeptOutputs:
        told = replace(document, utterances=(), source="", heard=(), turns=())
        return cls(tuple(texts), told, document.count_tagged())


class ResultCache:
    """What one run knows of earlier ones. Where nothing can be kept, it knows nothing."""

    def __init__(self, request: CacheRequest, pipeline: Pipeline, notice: Callable[[str], None]) -> None:
        self._request = request
        self._pipeline = pipeline
        self._notice = notice
        self._store = self._open() if request.mode is not CacheMode.OFF else None
        self._reader = self._store.open_reader() if self._store is not None else None
        self.looks = request.mode is CacheMode.USE
        self.fingerprint: Mapping[str, Any] | None = None  # of all stages, once it is known
        self._surroundings: dict[int, Surroundings] = {}  # of stages, by number
        self._identities: dict[str, dict[int, bytes]] = {}  # by job, of its stages
        self.pieces = PieceCache(self._store, self.looks, self._identify, self._recall_recording, self._note)
        self._savings: dict[str, Savings] = {}  # by job
        self.restored: dict[str, float] = {}  # by job: seconds that it took to compute

    def _open(self) -> Store | None:
        try:
            return Store(find_file(), self._request.limits, self._notice, self._tell)
        except Unusable as error:
            self._notice(f"{error}; this run goes on without a result cache")
            return None

    def _tell(self) -> None:
        """The user, once, where transcripts come to lie."""
        days = self._request.limits.age / 86400
        self._notice(
            f"so that nothing is computed twice, results are kept for {days:.0f} days, transcripts among them, in "
            f"{find_file()}; --cache off keeps none, prefork cache clear removes them"
        )

    @property
    def is_on(self) -> bool:
        return self._store is not None

    def close(self) -> None:
        self.pieces.close()
        if self._reader is not None:
            self._reader.close()
        if self._store is not None:
            self._store.close()

    def sum_up(self) -> Savings:
        """Of all jobs that were not restored."""
        total = Savings()
        for tally in self._savings.values():
            total.add(tally)
        return total

    # -- engines -----------------------------------------------------------------------------------------------

    def recall_models(
        self, phases: Sequence[Pipeline], plan: Callable[[Pipeline], Plan]
    ) -> dict[str, Mapping[str, Any]] | None:
        """What the engines said of themselves, if all have, and nothing about them has changed; for a machine that is
        planned for as it was then."""
        if self._reader is None or any(stage.is_remote for stage in self._pipeline):
            return None
        known: dict[str, Mapping[str, Any]] = {}
        for phase in phases:
            planned = plan(phase)
            found = self._reader.find(_make_phase_key(phase, planned))
            models = KnownModels.load(found.value) if found is not None else None
            if models is None:
                return None
            learned = planned.learn(models.weights, models.private)
            if learned.refusal:
                return None
            self.surround(phase, learned)
            known |= models.fingerprints
        return known

    def remember_models(self, phase: Pipeline, runtime: Computer) -> None:
        """A runtime has loaded the models of a phase."""
        inventory, plan = runtime.supervisor.inventory, runtime.supervisor.plan
        if self._store is None or inventory is None or plan is None:
            return
        self.surround(phase, plan)
        if not any(stage.is_remote for stage in phase):
            models = KnownModels(inventory.fingerprints, inventory.weights, inventory.private)
            try:
                self._store.put(Entry(_make_phase_key(phase, plan), Kind.MODEL, models.dump()))
            except OSError:  # a model's folder has gone; the run will say so
                return

    def surround(self, phase: Pipeline, plan: Plan) -> None:
        """What the stages of a phase are computed with."""
        for number, stage in enumerate(self._pipeline):
            if stage in phase:
                self._surroundings[number] = Surroundings.of(plan, self._request.longest)
        self._identities.clear()

    def _identify(self, job: Job, number: int) -> bytes | None:
        """The identity of the engine of a stage, as far as the job depends on it."""
        if self.fingerprint is None or number not in self._surroundings or self._pipeline[number].is_remote:
            return None
        known = self._identities.setdefault(job.id, {})
        if number not in known:
            stage = narrow(self.fingerprint, self._pipeline, job)["stages"][number]
            known[number] = identify(stage, self._pipeline[number].engine, self._surroundings[number])
        return known[number]

    # -- files -------------------------------------------------------------------------------------------------

    def _recall_recording(self, job: Job) -> bytes:
        """The digest of a job's recording; empty if it is not known, or to be looked at again."""
        state = _find_state(job, job.media)
        if self._reader is None or state is None or not random.randrange(_RECHECKED):
            return b""
        found = self._reader.find(_make_file_key(state))
        return found.value if found is not None else b""

    def _find_recording(self, job: Job) -> bytes:
        """The same; read whole if one of its size was seen before."""
        if known := self._recall_recording(job):
            return known
        state = _find_state(job, job.media)
        if self._reader is None or state is None or self._reader.find(_make_size_key(state)) is None:
            return b""
        return _digest(state)

    # -- documents ---------------------------------------------------------------------------------------------

    def restore(self, job: Job, folder: OutputFolder) -> JobResult | None:
        """A job that was done before, its outputs written; None if it is to be run."""
        if self._reader is None or not self.looks:
            return None
        recording = self._find_recording(job) if job.media is not None else b""
        key = self._make_document_key(job, recording)
        kept = self._find_outputs(job, key) if key else None
        if kept is None or self._store is None:
            return None
        try:
            job.check_files()
            written = zip(job.outputs, kept.texts, strict=True)
            files = tuple(folder.write(output.path, text) for output, text in written)
        except InputError as error:
            return JobResult(job, error=error)
        self._store.put(*_note_recording(job, recording))
        return JobResult(job, kept.document, files, tagged=kept.tagged)

    def _find_outputs(self, job: Job, key: bytes) -> KeptOutputs | None:
        """key: of its document, which is rendered if that has not been done."""
        assert self._reader is not None and self._store is not None
        place = make_outputs_key(key, [(output.format, output.layout) for output in job.outputs])
        try:
            if (found := self._reader.find(place)) is not None:
                kept: KeptOutputs = find_schema(KeptOutputs).decode(found.value)
                self._store.use(place, key)
            elif (found := self._reader.find(key)) is not None:
                document: Document = find_schema(KeptDocument).decode(found.value).document
                texts = [formats.render(document, output.format, output.layout) for output in job.outputs]
                kept = KeptOutputs.of(document, texts)
                self._store.use(key)
                self._store.put(Entry(place, Kind.OUTPUTS, find_schema(KeptOutputs).encode(kept), found.seconds))
            else:
                return None
        except SchemaError:
            return None
        self.restored[job.id] = found.seconds
        return kept

    def keep(self, result: JobResult, folder: OutputFolder) -> None:
        """What came of a job that was run. folder: where its outputs are."""
        job, document, tally = result.job, result.document, self._savings.get(result.job.id, Savings())
        if self._store is None or document is None:
            return
        self._store.put(*_note_recording(job, tally.recording))
        key = self._make_document_key(job, tally.recording) if tally.complete else b""
        if not key or not all(state.is_current() for state in job.states):
            return
        try:
            value = find_schema(KeptDocument).encode(KeptDocument(self._describe(job), document))
            texts = [folder.read(file) for file in result.files]
            outputs = find_schema(KeptOutputs).encode(KeptOutputs.of(document, texts))
        except (SchemaError, InputError):  # an engine has put something else into it; somebody has removed it
            return
        place = make_outputs_key(key, [(output.format, output.layout) for output in job.outputs])
        seconds = tally.saved + tally.spent
        self._store.put(Entry(key, Kind.DOCUMENT, value, seconds), Entry(place, Kind.OUTPUTS, outputs, seconds))

    def _note(self, job: Job, savings: Savings) -> None:
        """What came of a job in one runtime, perhaps not the last one."""
        self._savings.setdefault(job.id, Savings()).add(savings)

    def _make_document_key(self, job: Job, recording: bytes) -> bytes:
        """Empty if anything of it is not known."""
        engines = [self._identify(job, number) for number in range(len(self._pipeline))]
        known = [engine for engine in engines if engine is not None]
        return _make_key(job, known, recording) if len(known) == len(engines) else b""

    def _describe(self, job: Job) -> Recipe:
        stages = [(s.engine, json.dumps(dict(s.options), default=os.fspath)) for s in self._pipeline]
        return Recipe(
            tuple(stages),
            job.id,
            os.fspath(job.source.absolute()),
            os.fspath(job.media.absolute()) if job.media is not None else None,
            job.seconds,
            job.selection.track,
            job.selection.channels,
            job.language,
            tuple((output.format, output.layout) for output in job.outputs),
            self._surroundings[len(self._pipeline) - 1],
        )


def make_outputs_key(document: bytes, outputs: Sequence[tuple[str, CueLayout]]) -> bytes:
    """document: its key."""
    return digest("outputs", document, list(outputs))


def make_document_key(
    job: Job, pipeline: Pipeline, fingerprint: Mapping[str, Any], surroundings: Sequence[Surroundings]
) -> bytes:
    """Of what a runtime would make of a job now: its recording is read. Empty if that cannot be."""
    stages = narrow(fingerprint, pipeline, job)["stages"]
    described = zip(stages, pipeline, surroundings, strict=True)
    engines = [identify(known, stage.engine, where) for known, stage, where in described]
    state = _find_state(job, job.media)
    return _make_key(job, engines, _digest(state) if state is not None else b"")


def _make_key(job: Job, engines: Sequence[bytes], recording: bytes) -> bytes:
    """Empty if its files cannot be read. The document may name them, and not where they are."""
    state = _find_state(job, job.source)
    if state is None or (job.media is not None and not recording):
        return b""
    source = recording if job.source == job.media else _digest(state)
    if not source:
        return b""
    names = (job.id, job.source.name, job.media.name if job.media is not None else None)
    wanted = [output.format for output in job.outputs]
    return digest("document", engines, source, recording, names, find_length(job), job.selection, job.language, wanted)


def _make_phase_key(phase: Pipeline, plan: Plan) -> bytes:
    return make_models_key([(stage.engine, stage.options) for stage in phase], f"{plan.device} {plan.fast_dtype}")


def _find_state(job: Job, path: Path | None) -> FileState | None:
    """Of one of its files, as it was noted; None if it was not."""
    return next((state for state in job.states if path is not None and state.path == os.fspath(path)), None)


def _digest(state: FileState) -> bytes:
    """Of all of a file; empty if it cannot be read, or is not what it was."""
    try:
        found = digest_file(Path(state.path))
    except OSError:
        return b""
    return found if state.is_current() else b""


def _make_file_key(state: FileState) -> bytes:
    path = Path(state.path).absolute()
    return digest("file", path, state.size, state.changed, state.inode)


def _make_size_key(state: FileState) -> bytes:
    return digest("size", state.size)


def _note_recording(job: Job, recording: bytes) -> list[Entry]:
    """That it need not be read again; not of one that was changed just now, which could be again unnoticed."""
    state = _find_state(job, job.media)
    if state is None or not recording or not state.is_current():
        return []
    if time.time() - max(state.changed) / 1e9 < SETTLED_SECONDS:
        return [Entry(_make_size_key(state), Kind.FILE, b"")]
    return [Entry(_make_size_key(state), Kind.FILE, b""), Entry(_make_file_key(state), Kind.FILE, recording)]
