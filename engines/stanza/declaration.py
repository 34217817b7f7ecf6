"""What stanza's engine declares."""

from __future__ import annotations

from prefork.engines.declaration import Declaration, LanguageTable, Role

TAGGER = Declaration(
    roles=(Role.TAGGER,),
    options=("language", "model_dir", "package", "retokenize", "keep"),
    languages=LanguageTable(),
)
