"""What an engine, or a service, says of itself before it is imported.

Commands and the supervisor have to know which engines there are, what they do, what they share and what they take; they
never import torch, and engines do. So a declaration is no attribute of the engine's class: it is an object in a module
of its own that imports nothing heavy, and the package names it beside the engine, under the same name:

    [project.entry-points."prefork.engines"]
    mine = "my_package.engine:MyEngine"          # imports torch; only processes that compute import it

    [project.entry-points."prefork.declarations"]
    mine = "my_package.declaration:MINE"         # imports prefork.engines.base, which is light

    # my_package/declaration.py
    from prefork.engines.base import INT8, Declaration, Role

    MINE = Declaration(roles=(Role.RECOGNISER,), options=("model", "dtype"), obstacles=(INT8,))

    prefork transcribe IN OUT --engine mine --model here

To ask a process that imports the engines would take seconds before `--engine` can be refused, and an engine that cannot
be imported would be in the way of all others; two places for one thing cannot contradict each other, because nothing
stands in both: what is only needed where an engine runs is an attribute of its class (`Engine.memory_stage`).

An engine without a declaration serves no command; `Runtime("mine")` takes it, as an engine with a model of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from prefork.engines.errors import LoadError
from prefork.engines.text.languages import get_long_code


class Role(StrEnum):
    """What an engine does for the commands that it serves.

    aligner: times for the words of utterances; `align --engine`. recovery: times for utterances that have none;
    `align --utr`. recogniser: `Document.heard`, and with the option `diarize` also `Document.turns`;
    `transcribe --engine`, and `align --utr`, which finds the utterances among what was heard. diarizer:
    `Document.turns`; `diarize --engine`. tagger: parts of speech and grammar; `morphotag --engine`.
    """

    ALIGNER = "aligner"
    RECOVERY = "recovery"
    RECOGNISER = "recogniser"
    DIARIZER = "diarizer"
    TAGGER = "tagger"

    @property
    def commands(self) -> tuple[str, ...]:
        return _COMMANDS[self]


_COMMANDS = {
    Role.ALIGNER: ("align",),
    Role.RECOVERY: ("align",),
    Role.RECOGNISER: ("transcribe", "align"),
    Role.DIARIZER: ("diarize",),
    Role.TAGGER: ("morphotag",),
}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an engine computes on the CPU alone. option, values: where the option has one of these values; without an
    option, always.

    >>> INT8.applies({"dtype": "int8"}), INT8.applies({}), Obstacle("it is written in C").applies({})
    (True, False, True)
    """

    reason: str
    option: str = ""
    values: tuple[Any, ...] = ()

    def applies(self, options: Mapping[str, Any]) -> bool:
        return not self.option or (self.option in options and options[self.option] in self.values)


INT8 = Obstacle("int8 weights are multiplied by the CPU; take another --dtype", "dtype", ("int8",))


@dataclass(frozen=True, slots=True)
class LanguageTable:
    """That an engine has a model for each language.

    Its option `languages` gets the languages of all texts that there are, as these spell them, and an empty one for
    texts that name none. In its fingerprint, the entry `models` has by language, in ISO 639-3, what identifies the
    model, and the entry `language` is the language of texts that name none: an output depends on the models of its own
    text's languages alone, and is not made again because another text brings another language. The names of the entries
    may be chosen.
    """

    models: str = "models"
    language: str = "language"

    def narrow(self, engine: str, fingerprint: Mapping[str, Any], languages: Sequence[str]) -> Mapping[str, Any]:
        """The fingerprint, as far as the outputs of a text in these languages depend on it. languages: as
        `prefork.run.headers.read_languages` gives them. Raises LoadError if there is no such table in it.

        >>> known = {"engine": "mine", "models": {"deu": "a", "eng": "b"}, "language": "eng"}
        >>> LanguageTable().narrow("mine", known, ["de"])
        {'engine': 'mine', 'models': {'deu': 'a'}, 'language': 'eng'}
        """
        models = fingerprint.get(self.models)
        if not isinstance(models, Mapping) or self.language not in fingerprint:
            raise LoadError(
                f"engine {engine} declares a model for each language, but its fingerprint has no {self.models!r} by "
                f"language, or no {self.language!r}; one of the two must be mended"
            )
        own = {get_long_code(name) if name else fingerprint[self.language] for name in languages}
        return {**fingerprint, self.models: {name: model for name, model in models.items() if name in own}}


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an engine or a service is, for those that have not imported it.

    roles: what it does, and so which commands take it by its name; none for an engine that is only a stage of
    pipelines made in Python, or that others name here. family: engines of one family may have the same model
    (`Engine.identify_model`), and a command that is told the name of a family takes the engine of that family that it
    can use: `align --engine whisper` is `whisper-aligner`. None: the engine's own name. Empty: it has no model.

    options: of the commands' options, those that its constructor takes as keywords of the same name (`language` is
    --lang): `model`, `dtype`, `language`; of an aligner `max_segment`; of a recogniser `diarize` and `speakers`, if it
    finds speakers itself, and `only_untimed`: to leave transcripts alone that have all their times; of a diarizer
    `speakers`, `min_speakers` and `max_speakers`; of a tagger `model_dir`, `package`, `retokenize` and `keep`. An
    option that the user has given and that is not among them is refused in one line. indifferent: options that it does
    not take, and that may be given because they make no difference to it. refusals: by option, what is said instead of
    that line. choices: by option, the only values that it takes; the constructor need not be asked.

    obstacles: why, with which options, it computes on the CPU alone. languages: of an engine that has a model for each.
    recovery: of an aligner, the engine that finds utterances without times before it, with --utr auto. detector: of a
    recogniser, the engine that finds the language before it, without --lang.

    Raises ValueError if what stands here cannot be.
    """

    roles: tuple[Role, ...] = ()
    family: str | None = None
    options: tuple[str, ...] = ()
    indifferent: tuple[str, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    obstacles: tuple[Obstacle, ...] = ()
    languages: LanguageTable | None = None
    recovery: str = ""
    detector: str = ""

    def __post_init__(self) -> None:
        for name in ("roles", "options", "indifferent", "obstacles"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} must be a tuple, not {getattr(self, name)!r}")
        if unknown := [role for role in self.roles if role not in list(Role)]:
            raise ValueError(f"roles must be of {', '.join(Role)}, not {', '.join(map(repr, unknown))}")
        object.__setattr__(self, "roles", tuple(map(Role, self.roles)))
        for name, needed in (("recovery", Role.ALIGNER), ("detector", Role.RECOGNISER)):
            if getattr(self, name) and needed not in self.roles:
                raise ValueError(f"{name} is for engines with the role {needed}, which this one has not")
        if self.languages is not None and "languages" in self.options:
            raise ValueError("the option languages comes of itself with a LanguageTable; leave it out of options")

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that take it by its name."""
        return tuple(dict.fromkeys(command for role in self.roles for command in role.commands))

    def takes(self, option: str, value: Any) -> bool:
        """Whether it takes this option, and this value of it."""
        return option in self.options and (option not in self.choices or value in self.choices[option])

    def describe(self) -> str:
        """Whom it serves as what, for people.

        >>> Declaration((Role.ALIGNER, Role.RECOVERY)).describe(), Declaration().describe()
        ('serves align as an aligner and a recovery', 'serves no command')
        """
        named = " and ".join(f"{'an' if role[0] in 'aeiou' else 'a'} {role}" for role in self.roles)
        return f"serves {' and '.join(self.commands)} as {named}" if named else "serves no command"
