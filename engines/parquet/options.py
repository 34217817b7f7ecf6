"""What of a data set is wanted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RowOptions:
    """audio_column, text_column, id_column: None where the schema tells. where: a condition on rows, as `conditions`
    parses it. min_audio_len, max_audio_len: samples at 16 kHz, both included. limit: rows, the first that pass.
    keep_audio: the recordings are in the results too."""

    audio_column: str | None = None
    text_column: str | None = None
    id_column: str | None = None
    split: str | None = None
    where: str | None = None
    min_audio_len: int | None = None
    max_audio_len: int | None = None
    limit: int | None = None
    keep_audio: bool = False

    @property
    def filters_lengths(self) -> bool:
        return self.min_audio_len is not None or self.max_audio_len is not None

    def passes(self, samples: int) -> bool:
        """Whether a recording of that length does."""
        least, most = self.min_audio_len, self.max_audio_len
        return (least is None or samples >= least) and (most is None or samples <= most)

    def describe(self) -> dict[str, Any]:
        """What results depend on, in JSON values; what is not given is left out."""
        return {name: value for name, value in asdict(self).items() if value}
