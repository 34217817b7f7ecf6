"""What the service Rev.ai declares."""

from __future__ import annotations

from prefork.engines.declaration import Declaration, Role

_MODEL = "Rev.ai brings its own model; leave --model and --dtype out"
RECOGNISER = Declaration(
    roles=(Role.RECOGNISER,),
    family="",
    options=("language", "diarize", "only_untimed"),
    refusals={
        "model": _MODEL,
        "dtype": _MODEL,
        "speakers": "Rev.ai counts speakers itself; leave --speakers out, or give a --diarize-model",
    },
)
