"""What the CTC engines declare."""

from __future__ import annotations

from dataclasses import replace

from prefork.engines.declaration import INT8, Declaration, Role

# Emissions are of letters, whatever language these are of: to say which one changes nothing.
ALIGNER = Declaration(
    roles=(Role.ALIGNER,),
    family="ctc",
    options=("model", "dtype", "max_segment"),
    indifferent=("language",),
    obstacles=(INT8,),
    recovery="ctc-recovery",
)
WAV2VEC2 = replace(ALIGNER, family="wav2vec2", recovery="")  # the same engine; nothing is recovered before it unasked
RECOVERY = Declaration(
    roles=(Role.RECOVERY,),
    family="ctc",
    options=("model", "dtype"),
    indifferent=("language",),
    obstacles=(INT8,),
)
