"""Pipelines: which engines a command's jobs go through, one after the other.

    align       [recogniser -> match | recovery ->] aligner         --utr, --engine: usually ctc-recovery -> ctc
    transcribe  [detector ->] recogniser -> [diarizer ->] assign    --engine: usually language -> whisper -> assign
    diarize     diarizer                                            --engine: usually diarize
    morphotag   tagger                                              --engine: usually stanza

Every stage is an engine: it gets the document that the one before it has made, and adds to it. Which engines there are,
in which of these roles, and which options they take, they declare: `prefork.engines.declaration`. A new command is one
more function here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from prefork.engines import registry
from prefork.engines.base import LoadError
from prefork.engines.declaration import Declaration, Role


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


@dataclass(frozen=True, slots=True)
class Stage:
    """One engine of a pipeline, with its options."""

    engine: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_remote(self) -> bool:
        """Whether a service does it, in threads of the supervisor."""
        return registry.is_service(self.engine)

    @property
    def declaration(self) -> Declaration:
        """What its engine says of itself. Raises LoadError if that cannot be used."""
        return registry.declare(self.engine)


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
    recovered: the name of a recovery or a recogniser, or off; auto is what the aligner declares, ctc for prefork's own.
    utr_model: of that engine; by default the aligner's own where it is of the same family. Raises LoadError.
    """
    name = _choose("align takes --engine", engine, Role.ALIGNER)
    asked = {"model": model, "dtype": dtype, "max_segment": max_segment, "language": language}
    aligner = _make_stage(name, asked)
    return (*_recover(utr, aligner, utr_model, dtype, language), aligner)


def _recover(utr: str, aligner: Stage, model: str | None, dtype: str | None, language: str | None) -> Iterator[Stage]:
    """Stages that give times to utterances that have none."""
    name = aligner.declaration.recovery if utr == "auto" else utr
    if name in ("", "off"):
        return
    roles = (Role.RECOVERY, Role.RECOGNISER)
    name = _choose("--utr takes", name, *roles, before=("auto",), behind=("off",))
    offered: dict[str, Any] = {"dtype": dtype}
    family = registry.find_family(name)
    if model is None and family and family == registry.find_family(aligner.engine):
        offered["model"] = aligner.options.get("model")
    recogniser = Role.RECOVERY not in registry.declare(name).roles
    asked = {"model": model, "language": language}
    yield _make_stage(name, asked, {**offered, "only_untimed": recogniser or None}, {"model": "--utr-model"})
    if recogniser:
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
    """Words with times from recordings; with diarize, or what only it needs, and who said them.

    engine: whisper, rev, or the name of another recogniser that is installed. One that finds speakers itself does so
    unless there is a diarize_model. Raises LoadError.
    """
    diarize = diarize or diarize_model is not None or speakers is not None
    name = _choose("transcribe takes --engine", engine, Role.RECOGNISER)
    declaration = registry.declare(name)
    alone = "diarize" in declaration.options and diarize_model is None  # who speaks is up to the recogniser
    asked = {"model": model, "dtype": dtype, "language": language, "speakers": speakers if alone else None}
    recogniser = _make_stage(name, asked, {"diarize": diarize and alone})
    detectors = [declaration.detector] if declaration.detector and not language else []
    detecting = [_make_stage(detector, {}, {"model": model, "dtype": dtype}) for detector in detectors]
    speaking = find_speakers(diarize_model, speakers=speakers) if diarize and not alone else ()
    return (*detecting, recogniser, *speaking, Stage("assign"))


def find_speakers(
    model: str | None = None,
    *,
    engine: str = "diarize",
    speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
) -> Pipeline:
    """Who speaks when. engine: diarize, or the name of another diarizer that is installed. Raises LoadError."""
    counts = {"speakers": speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    return (_make_stage(_choose("diarize takes --engine", engine, Role.DIARIZER), {"model": model, **counts}),)


def morphotag(
    language: str | None = None,
    *,
    engine: str = "stanza",
    model_dir: str | None = None,
    package: str | None = None,
    retokenize: bool = False,
    keep: bool = False,
) -> Pipeline:
    """Parts of speech, lemmas and dependencies for the words of transcripts and texts.

    language: of files that do not say theirs. engine: stanza, or the name of another tagger that is installed. The rest
    as `StanzaTagger` has it. Raises LoadError.
    """
    options = {"language": language, "model_dir": model_dir, "package": package}
    name = _choose("morphotag takes --engine", engine, Role.TAGGER)
    return (_make_stage(name, {**options, "retokenize": retokenize, "keep": keep}),)


def _choose(what: str, name: str, *roles: Role, before: Sequence[str] = (), behind: Sequence[str] = ()) -> str:
    """The engine that the user means by a name. what: takes it, for people. before, behind: what else that takes.
    Raises LoadError."""
    try:
        if found := registry.match(name, roles):
            return found
        why = f", which {registry.declare(name).describe()}"
    except LoadError as error:
        why = f": {error}"
    known = [*before, *registry.list_choices(roles), *behind]
    listed = ", ".join(known) if behind else " or ".join(filter(None, (", ".join(known[:-1]), *known[-1:])))
    raise LoadError(f"{what} {listed or 'of no engine that is installed'}, not {name!r}{why}")


def _make_stage(
    engine: str,
    asked: Mapping[str, Any],
    offered: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Stage:
    """A stage with those options that its engine takes.

    asked: by the user, if not None or False: refused if the engine does not take them. offered: for those that do.
    flags: what the user calls options, where that does not follow from their names.
    """
    declaration = registry.declare(engine)
    flags = {name: f"--{name.replace('_', '-')}" for name in asked} | {"language": "--lang"} | dict(flags or {})
    for name, value in asked.items():
        if value is None or value is False or name in declaration.indifferent:
            continue
        if name not in declaration.options:
            raise LoadError(declaration.refusals.get(name) or _explain_options(engine, name, asked, flags))
        if not declaration.takes(name, value):
            listed = " or ".join(map(str, declaration.choices[name]))
            raise LoadError(f"engine {engine} takes {flags[name]} {listed}, not {value!r}")
    known = {**_drop_none(offered or {}), **_drop_none(asked)}
    return Stage(engine, {name: value for name, value in known.items() if declaration.takes(name, value)})


def _explain_options(engine: str, name: str, asked: Mapping[str, Any], flags: Mapping[str, str]) -> str:
    known = ", ".join(flags[other] for other in asked if other in registry.declare(engine).options)
    return f"engine {engine} does not take {flags[name]}{f', only {known}' if known else ''}; leave it out"


def choose_languages(pipeline: Pipeline, find_languages: Callable[[], Sequence[str]]) -> Pipeline:
    """The pipeline, its stages told which languages there are. find_languages: called if one wants to know."""
    if not any(stage.declaration.languages for stage in pipeline):
        return pipeline
    known = {"languages": tuple(find_languages())}
    return tuple(replace(s, options={**s.options, **known}) if s.declaration.languages else s for s in pipeline)


def list_phases(pipeline: Pipeline) -> list[Pipeline]:
    """The pipeline cut where another model begins, for machines that cannot hold all of them at once.

    >>> [len(phase) for phase in list_phases((Stage("language"), Stage("whisper"), Stage("diarize"), Stage("assign")))]
    [2, 2]
    """
    phases: list[Pipeline] = []
    known = ""
    for stage in pipeline:
        model = registry.find_family(stage.engine)
        if phases and (not known or model in ("", known)):
            phases[-1] = (*phases[-1], stage)
        else:
            phases.append((stage,))
        known = model or known
    return phases


def _drop_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
