"""Between the supervisor and an owner of weights on a GPU, as prefork.wire.messages has the others.

supervisor -> owner            UploadWeights
owner -> supervisor            WeightsExported, or IPCUnavailable, LoadFailed
"""

from __future__ import annotations

from dataclasses import dataclass

from prefork.wire.exports import Export
from prefork.wire.messages import IPCUnavailable, LoadFailed


@dataclass(frozen=True, slots=True)
class UploadWeights:
    """path: of a file with the weights. size: bytes. kind: "cuda", or "host" for the host's memory."""

    path: str
    size: int
    kind: str


@dataclass(frozen=True, slots=True)
class WeightsExported:
    """They are on the device until the channel is closed. seconds: that this took."""

    export: Export
    seconds: float


FromOwner = WeightsExported | IPCUnavailable | LoadFailed
