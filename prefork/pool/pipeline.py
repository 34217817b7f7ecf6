"""Pipelines: which engines a command's jobs go through, one after the other.

    align       [asr -> match | ctc-recovery ->] ctc | whisper-aligner
    transcribe  [language ->] whisper | rev -> [diarize ->] assign
    diarize     diarize
    morphotag   stanza

Every stage is an engine: it gets the document that the one before it has made, and adds to it. A new command is one
more function here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from prefork.engines import registry
from prefork.engines.base import LoadError


class Intake(StrEnum):
    """What a command takes in."""

    PAIRS = "transcripts and recordings, or one transcript"
    RECORDINGS = "recordings, or one recording"
    TEXTS = "transcripts or texts, or one of them"


class Residency(StrEnum):
    """all: the models of all stages stay in memory. stage: each is unloaded after its stage, for machines and cards
    that cannot hold all at once."""

    ALL = "all"
    STAGE = "stage"


ALIGNERS = {"ctc": "ctc", "whisper": "whisper-aligner"}  # by what the user calls them
# Engines whose model is that of another one, and those that have none.
_MODELS = {
    "language": "whisper",
    "whisper-aligner": "whisper",
    "ctc-recovery": "ctc",
    "match": "",
    "assign": "",
    "rev": "",
}
RECOGNISERS = ("whisper", "rev")
RECOVERIES = ("auto", "ctc", "whisper", "rev", "off")


@dataclass(frozen=True, slots=True)
class Stage:
    """One engine of a pipeline, with its options. by_language: it has a model for each language, and wants to be told
    which ones there are, as the option `languages`; its fingerprint has `models` by language, and the `language` of
    texts that do not say theirs."""

    engine: str
    options: Mapping[str, Any] = field(default_factory=dict)
    by_language: bool = False

    @property
    def is_remote(self) -> bool:
        """Whether a service does it, in threads of the supervisor."""
        return registry.is_service(self.engine)


Pipeline = tuple[Stage, ...]


def align(
    engine: str = "ctc",
    model: str | None = None,
    *,
    dtype: str | None = None,
    max_segment: float | None = None,
    language: str | None = None,
    utr: str = "auto",
    utr_model: str | None = None,
) -> Pipeline:
    """Times for the words of transcripts; before that, for utterances that have none.

    engine: ctc, whisper, or the name of another aligner that is installed. utr: how the times of utterances are
    recovered; auto is ctc. utr_model: of that engine; by default the aligner's own where it is of the same kind. Raises
    LoadError.
    """
    if utr not in RECOVERIES:
        raise LoadError(f"--utr takes {', '.join(RECOVERIES)}, not {utr!r}")
    name = ALIGNERS.get(engine, engine)
    whisper = {"language": language} if name == "whisper-aligner" else {}
    aligner = Stage(name, _drop_none({"model": model, "dtype": dtype, "max_segment": max_segment, **whisper}))
    if utr_model is None and ALIGNERS.get("ctc" if utr == "auto" else utr) == name:
        utr_model = model
    return (*_recover(utr, name, utr_model, dtype, language), aligner)


def _recover(utr: str, aligner: str, model: str | None, dtype: str | None, language: str | None) -> Iterator[Stage]:
    """Stages that give times to utterances that have none."""
    if utr == "off" or (utr == "auto" and aligner not in ALIGNERS.values()):
        return
    if utr in ("auto", "ctc"):
        yield Stage("ctc-recovery", _drop_none({"model": model, "dtype": dtype}))
        return
    options = {"language": language, "only_untimed": True}
    yield Stage(utr, _drop_none({**options, **({"model": model, "dtype": dtype} if utr == "whisper" else {})}))
    yield Stage("match")


def transcribe(
    engine: str = "whisper",
    model: str | None = None,
    *,
    dtype: str | None = None,
    language: str | None = None,
    diarize: bool = False,
    diarize_model: str | None = None,
    speakers: int | None = None,
) -> Pipeline:
    """Words with times from recordings; with diarize, or what only it needs, and who said them. Raises LoadError."""
    diarize = diarize or diarize_model is not None or speakers is not None
    if engine not in RECOGNISERS:
        raise LoadError(f"transcribe takes --engine {' or '.join(RECOGNISERS)}, not {engine!r}")
    if engine == "rev":
        if model is not None or dtype is not None:
            raise LoadError("Rev.ai brings its own model; leave --model and --dtype out")
        if speakers is not None and diarize_model is None:
            raise LoadError("Rev.ai counts speakers itself; leave --speakers out, or give a --diarize-model")
        recogniser = [Stage("rev", _drop_none({"language": language, "diarize": diarize and diarize_model is None}))]
    else:
        options = _drop_none({"model": model, "dtype": dtype})
        detector = [] if language else [Stage("language", options)]
        recogniser = [*detector, Stage("whisper", {**options, **_drop_none({"language": language})})]
    own = engine == "whisper" or diarize_model is not None
    speaking = find_speakers(diarize_model, speakers=speakers) if diarize and own else ()
    return (*recogniser, *speaking, Stage("assign"))


def find_speakers(
    model: str | None = None,
    *,
    speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
) -> Pipeline:
    """Who speaks when."""
    counts = {"speakers": speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    return (Stage("diarize", _drop_none({"model": model, **counts})),)


def morphotag(
    language: str | None = None,
    *,
    model_dir: str | None = None,
    package: str | None = None,
    retokenize: bool = False,
    keep: bool = False,
) -> Pipeline:
    """Parts of speech, lemmas and dependencies for the words of transcripts and texts.

    language: of files that do not say theirs. The rest as `StanzaTagger` has it.
    """
    options = {"language": language, "model_dir": model_dir, "package": package}
    return (Stage("stanza", {**_drop_none(options), "retokenize": retokenize, "keep": keep}, by_language=True),)


def choose_languages(pipeline: Pipeline, find_languages: Callable[[], Sequence[str]]) -> Pipeline:
    """The pipeline, its stages told which languages there are. find_languages: called if one wants to know."""
    if not any(stage.by_language for stage in pipeline):
        return pipeline
    known = {"languages": tuple(find_languages())}
    return tuple(replace(s, options={**s.options, **known}) if s.by_language else s for s in pipeline)


def list_phases(pipeline: Pipeline) -> list[Pipeline]:
    """The pipeline cut where another model begins, for machines that cannot hold all of them at once.

    >>> [len(phase) for phase in list_phases((Stage("language"), Stage("whisper"), Stage("diarize"), Stage("assign")))]
    [2, 2]
    """
    phases: list[Pipeline] = []
    known = ""
    for stage in pipeline:
        model = find_owner(stage.engine)
        if phases and (not known or model in ("", known)):
            phases[-1] = (*phases[-1], stage)
        else:
            phases.append((stage,))
        known = model or known
    return phases


def find_owner(engine: str) -> str:
    """The engine whose model an engine uses: itself, another one, or none."""
    return _MODELS.get(engine, engine)


def _drop_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def find_obstacles(engines: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Engines that cannot compute on a GPU, each with the reason. engines: with their options."""
    int8 = "int8 weights are multiplied by the CPU; take another --dtype"
    return tuple((name, int8) for name, options in engines.items() if options.get("dtype") == "int8")
