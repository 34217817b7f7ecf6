"""What the Whisper engines declare."""

from __future__ import annotations

from prefork.engines.declaration import INT8, Declaration, Role

RECOGNISER = Declaration(
    roles=(Role.RECOGNISER,),
    family="whisper",
    options=("model", "dtype", "language", "only_untimed"),
    obstacles=(INT8,),
    detector="language",
)
DETECTOR = Declaration(family="whisper", options=("model", "dtype"), obstacles=(INT8,))
ALIGNER = Declaration(
    roles=(Role.ALIGNER,),
    family="whisper",
    options=("model", "dtype", "max_segment", "language"),
    obstacles=(INT8,),
    recovery="ctc-recovery",
)
