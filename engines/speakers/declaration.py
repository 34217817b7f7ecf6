"""What the engines for speakers declare."""

from __future__ import annotations

from prefork.engines.declaration import Declaration, Role

DIARIZER = Declaration(roles=(Role.DIARIZER,), options=("model", "speakers", "min_speakers", "max_speakers"))
ASSIGNER = Declaration(family="")
