"""The engine protocol: one kind of model work, cut so that it runs under every sharing strategy.

    file -> Job -> split -> [Segment] -> prepare -> infer -> finish -> join -> Document -> file
                   host                  host      device   host      host

`infer` is the only step that sees the model, and it gets tensors and returns tensors: it may run in another
process, on another device, and on a batch with segments of several files. The other steps are host work; they
run in any worker, and `split`, `prepare`+`infer`+`finish` and `join` of one job may run in different workers.
What goes from one to the other (segments, pieces) must therefore be small and picklable: times, text, figures.

What an engine is for others, which commands it serves, what it takes and cannot do, stands in its `Declaration`, which
is read without importing it: see `prefork.engines.declaration`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from prefork.engines.audio.selection import Selection
from prefork.engines.declaration import INT8, Declaration, LanguageTable, Obstacle, Role
from prefork.engines.errors import InputError, LoadError
from prefork.engines.files import FileState
from prefork.engines.text.cues import CueLayout
from prefork.engines.text.document import Document

if TYPE_CHECKING:
    import torch

__all__ = [
    "BYTES_PER_SECOND",
    "ELEMENTS_PER_SECOND",
    "INT8",
    "SECONDS_PER_WORD",
    "Declaration",
    "Engine",
    "HostEngine",
    "InputError",
    "Job",
    "LanguageTable",
    "LoadError",
    "Obstacle",
    "Output",
    "Role",
    "Segment",
    "Tensors",
]

SECONDS_PER_WORD = 0.4  # what a word counts where there is no recording: 150 words a minute
ELEMENTS_PER_SECOND = 16_000  # of a batch: samples of audio at the rate that engines have it in
BYTES_PER_SECOND = 20_000_000  # of audio, as a wav2vec2 takes in float32: the most of all models that were measured


@dataclass(frozen=True, slots=True)
class Output:
    """One file to write: a format of `prefork.engines.text.formats` and where, below the output folder. layout: of
    subtitles."""

    format: str
    path: Path  # relative to the output folder
    layout: CueLayout = field(default_factory=CueLayout)


@dataclass(frozen=True, slots=True)
class Job:
    """One input file with its output files; the unit of retry.

    id: unique in a run and the same in the next one; what the user sees.
    source: the transcript, or the recording where there is no transcript.
    media: the recording that belongs to `source`. seconds: its length, 0 if unknown; without a recording, how long it
    would take to say what the source holds, roughly. states: of source and media, before anything was read of them;
    empty if nobody is to notice that they change. warnings: what its user should know of these files. selection: the
    track and the channels of the recording that are read. language: ISO 639-3, of a plain text that is not English;
    transcripts in CHAT say theirs.
    """

    id: str
    source: Path
    media: Path | None = None
    outputs: tuple[Output, ...] = ()
    seconds: float = 0.0
    states: tuple[FileState, ...] = ()
    warnings: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)
    language: str = ""

    def note_files(self) -> Job:
        """The same, with its files as they are now. Raises OSError."""
        paths = [path for path in (self.source, self.media) if path is not None]
        return replace(self, states=tuple(map(FileState.note, paths)))

    def check_files(self) -> None:
        """Raises InputError if one has been edited or replaced since: what was made of it may be of both."""
        for state in self.states:
            if not state.is_current():
                name = Path(state.path).name
                raise InputError(f"{name}: has changed since this run began, so nothing was written; run it again")


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a job that goes through the model; the unit of batching and of splitting.

    start, end: seconds in the recording, or of speech at its usual speed (SECONDS_PER_WORD) where there is none.
    content: what the engine needs to know about it beyond that.
    """

    index: int
    start: float
    end: float
    content: Any = None

    @property
    def seconds(self) -> float:
        return self.end - self.start


Tensors = Mapping[str, "torch.Tensor"]


class Engine(ABC):
    """One kind of model work. An instance holds settings and host-side tables, never the model.

    The constructor takes the engine's options as keywords and must be cheap. `infer` runs wherever the weights
    are mapped, under torch.inference_mode(); all other methods are free of the model.

    To be used by name, an engine is an entry point of its package; to be used by commands, its `Declaration` is one
    too, under the same name, in a module that does not import torch:

        [project.entry-points."prefork.engines"]
        mine = "my_package.engine:MyEngine"

        [project.entry-points."prefork.declarations"]
        mine = "my_package.declaration:MINE"

    Class attributes, for the processes in which it runs. name: as in fingerprints and logs. memory_stage: the name of
    its work among the memory checkpoints (--memory-checkpoints), if it is to have some: `transcription`, `diarization`,
    `speaker_alignment`, whose checkpoints have names that other tools know, or any other name in lower case such as
    `machine_translation`; not `pipeline` and `audio_preprocessing`, which contain it or precede it. batch_seconds: of
    segments, those of several jobs too, that `infer` takes at once; 0: one segment. suspicion: why one may doubt that a
    process with this model can fork; a canary decides.

    piece: the type of what `finish` returns, made of frozen dataclasses, tuples, texts and numbers, as
    `prefork.cache.schema` has it; without it, the result cache keeps nothing of the engine. Who gives it says that
    `prepare` depends on the segment, the recording and the settings alone, and `finish` on the segment, the length of
    the recording, and what `prepare` has made. batch_invariant: what comes of a segment is the same bytes whoever
    shares its batch; else the result cache keeps of it what was computed alone.
    """

    name: ClassVar[str]
    memory_stage: ClassVar[str] = ""

    batch_seconds: float = 0.0
    suspicion: ClassVar[str] = ""
    piece: ClassVar[Any] = None
    batch_invariant: ClassVar[bool] = False

    def suggest_dtype(self, dtype: str) -> None:  # noqa: B027  most have but one
        """What the weights are best held in on this machine: int8 where the model computes on a CPU that multiplies it,
        float32 elsewhere. Called before `setup`, if at all. For an engine whose user has not chosen, and whose results
        are as good in this as in float32."""

    def setup(self) -> None:  # noqa: B027  not every engine needs it
        """Builds the host-side tables that split, prepare, finish and join need, and keeps them in self.

        Called once before `load`, and alone in a process whose model lives elsewhere. Raises LoadError.
        """

    @abstractmethod
    def load(self) -> Any:
        """The model: any object. Called once, in the process that owns the weights.

        Every torch tensor that can be reached from the returned object is moved into the arena and is
        read-only afterwards. Raises LoadError.
        """

    def count_weights(self) -> int | None:
        """Bytes that the model's weights will take once they are loaded, as their headers say; None if unknown.

        Called after `setup` and before `load`: what does not fit into memory is refused before it is read.
        """
        return None

    def estimate_memory(self, segment: Segment) -> int:
        """Bytes that `prepare`, `infer` and `finish` take for a segment at their peak, as the model's configuration
        suggests; the base that every worker has is left out. A segment without content stands for any. Rather too much
        than too little: it decides alone until something was measured. After that, only what it says of one segment
        compared to another matters."""
        return round(BYTES_PER_SECOND * segment.seconds)

    def count_elements(self, segment: Segment) -> int:
        """What a segment takes up of a batch: samples at 16 kHz, whatever it is made of."""
        return max(1, round(segment.seconds * ELEMENTS_PER_SECOND))

    def describe_segment(self, segment: Segment) -> Any:
        """What of a segment its piece depends on, without what says only where in its job it stands: a value of frozen
        dataclasses, tuples, texts and numbers. By default its times and its content."""
        return segment.start, segment.end, segment.content

    def example(self) -> Tensors | None:
        """A small prepared segment, always the same; None if there is none.

        Before the first fork the model runs on it once, so that what libraries initialise lazily is shared too; then
        in a forked canary, which shows whether workers can live; and in `prefork check`.
        """
        return None

    def longest_example(self) -> Tensors | None:
        """A prepared segment of the greatest length that goes through the model at once, always the same; None if the
        example is one. Where a fork is safe with caveats (macOS), a canary infers it too: libraries that compute small
        things on one thread fail at larger ones."""
        return None

    def verify(self, output: Tensors) -> None:  # noqa: B027  not every engine needs it
        """Looks at what `infer` made of the example. Raises LoadError if the model is not what it says."""

    @abstractmethod
    def split(self, job: Job, document: Document) -> Sequence[Segment]:
        """The job's segments; none if there is nothing for the model to do, `join` is called all the same. Raises
        InputError.

        document: what is known of the job so far: its transcript, or nothing but the recording, and what the stages
        before this one have added.
        """

    @abstractmethod
    def prepare(self, job: Job, segment: Segment) -> Tensors:
        """Decodes what belongs to the segment into the tensors that `infer` wants. Raises InputError."""

    @abstractmethod
    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        """Runs the model on a batch of prepared segments, of any number and of several jobs: one result for each, in
        the same order. A segment's result does not depend on who shares its batch, but for float rounding; what it is
        given is not written to."""

    @abstractmethod
    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        """Makes of the segment's output a small picklable piece of the job's result. Raises InputError."""

    @abstractmethod
    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        """The document that `split` was given, with what the pieces, in the order of the segments, add to it."""

    def identify_model(self) -> Hashable:
        """Engines of one process that give the same, and not None, share one model: what the first of them loads.

        Called after `setup`.
        """
        return None

    def fingerprint(self) -> Mapping[str, Any]:
        """What the outputs depend on besides the input: model and settings, as JSON values, and a Path for each file or
        folder that the model is read from, which stands for its whole content. With a model for each language it has
        the entries that its `LanguageTable` names.

        An output made under another fingerprint is made again. prefork adds its own version, that of the package that
        brings the engine, and those of torch, torchaudio, transformers, stanza, pyannote.audio and num2words if that
        package requires them. Called after `setup`, before `load`.
        """
        return {"engine": self.name}


class HostEngine(Engine):
    """An engine without a model: all its work is `join`."""

    piece = type(None)

    def load(self) -> None:
        return None

    def count_weights(self) -> int:
        return 0

    def estimate_memory(self, segment: Segment) -> int:  # noqa: ARG002
        return 0

    def split(self, job: Job, document: Document) -> Sequence[Segment]:  # noqa: ARG002
        return []

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        raise NotImplementedError(f"{self.name} has no segments")

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        raise NotImplementedError(f"{self.name} has no model")

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        raise NotImplementedError(f"{self.name} has no segments")
