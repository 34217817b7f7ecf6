"""What the engines and services of this package are, for processes that do not import them."""

from __future__ import annotations

from prefork.engines.base import Declaration, LanguageTable, Obstacle, Role

SCRIPT = Declaration(roles=(Role.ALIGNER,))

PARROT = Declaration(
    roles=(Role.RECOGNISER,),
    family="parrot",
    options=("dtype", "language"),
    choices={"dtype": ("float32", "float64")},
    obstacles=(Obstacle("no GPU has so wide numbers", "dtype", ("float64",)),),
)
RULER = Declaration(roles=(Role.ALIGNER,), family="parrot", options=("dtype", "language"), choices=PARROT.choices)
HERALD = Declaration(
    roles=(Role.RECOGNISER,),
    family="",
    options=("diarize",),
    refusals={"model": "the herald knows no models; leave --model out"},
)
LEXICON = Declaration(roles=(Role.TAGGER,), family="", options=("language",), languages=LanguageTable("books", "usual"))
FORGETFUL = Declaration(roles=(Role.TAGGER,), family="", options=("language",), languages=LanguageTable())
