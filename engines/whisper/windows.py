"""What windows of a recording say: Whisper's text of each, from its first frame to its last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prefork.engines.whisper.checkpoint import FRAME, WhisperCheckpoint, compose_prompt
from prefork.engines.whisper.decoding import Decoded, WindowDecoder, decode, listen
from prefork.engines.whisper.model import count_context, encode
from prefork.engines.whisper.network import WhisperNetwork

NEVER = -1  # in place of a frame
DETECT = -1  # in place of a language's token
_UNHEARD = 3.0  # seconds after the last timestamp that are looked at again
_LEAST_STEP = 1.0  # seconds that a window has to go on by, to be looked at again


@dataclass(slots=True)
class TranscriptionWindow:
    """A window of 30 s. frames: of the encoder, those that are not padding. most: tokens that it may have at once.

    language: Whisper's code, None for an English-only checkpoint. languages: (languages,) probabilities. text: tokens,
    without timestamps. failed: the frame from which on nothing could be made out, or NEVER. first: the frame that the
    text reaches up to.
    """

    frames: int
    most: int
    language: str | None
    languages: Tensor
    text: list[int] = field(default_factory=list)
    failed: int = NEVER
    first: int = 0

    def take(self, decoded: Decoded, checkpoint: WhisperCheckpoint) -> bool:
        """Appends what was decoded from the first frame on. Whether there may be more to hear: the model may stop
        before the speech does, which goes on up to the end of a segment."""
        written = [token for token in decoded.tokens if token < checkpoint.eot]
        if decoded.silent or not written:
            return False
        if not (decoded.sound or decoded.tolerable):
            self.failed = self.first
            return False
        self.text += written
        reached = max(token for token in decoded.tokens if token >= checkpoint.timestamp_begin)
        step = reached - checkpoint.timestamp_begin
        self.first += step
        if step * FRAME < _LEAST_STEP or (self.frames - self.first) * FRAME < _UNHEARD:
            return False
        return self.count_room(checkpoint) > 0

    def count_room(self, checkpoint: WhisperCheckpoint) -> int:
        """Tokens that the decoder can take yet."""
        return checkpoint.most_tokens - len(self.compose(checkpoint))

    def compose(self, checkpoint: WhisperCheckpoint) -> list[int]:
        """Prompt and text."""
        return [*compose_prompt(checkpoint, self.language), *self.text]


def transcribe(
    network: WhisperNetwork,
    checkpoint: WhisperCheckpoint,
    features: Sequence[Tensor],
    decoder: WindowDecoder,
    languages: Sequence[int],
    frames: Sequence[int],
    most: Sequence[int],
) -> list[TranscriptionWindow]:
    """The windows with their texts.

    features: of each window, (mel bins, 2 * frames). decoder: over what the encoder makes of them. languages:
    their tokens, or DETECT. frames, most: as in `TranscriptionWindow`.
    """
    openings = listen(decoder, checkpoint)
    told = tell_languages(checkpoint, languages, [opening.languages for opening in openings])
    windows = [
        TranscriptionWindow(count, tokens, language, opening.languages)
        for count, tokens, language, opening in zip(frames, most, told, openings, strict=True)
    ]
    pending = list(range(len(windows)))
    while True:
        writing = [windows[index] for index in pending]
        decoded = decode(
            decoder,
            checkpoint,
            [opening.no_speech for opening in openings],
            [window.language for window in writing],
            [min(window.most, window.count_room(checkpoint)) for window in writing],
        )
        goes_on = [window.take(said, checkpoint) for window, said in zip(writing, decoded, strict=True)]
        pending = [index for index, more in zip(pending, goes_on, strict=True) if more]
        if not pending:
            return windows
        decoder.forget()
        rest = [cut(features[index], windows[index].first, windows[index].frames, checkpoint) for index in pending]
        decoder = WindowDecoder(network, encode(network, rest))
        openings = listen(decoder, checkpoint)


def tell_languages(
    checkpoint: WhisperCheckpoint, tokens: Sequence[int], probabilities: Sequence[Tensor]
) -> list[str | None]:
    """The windows' languages, as Whisper's codes; None for an English-only checkpoint. tokens: as stated, or DETECT."""
    if not checkpoint.multilingual:
        return [None] * len(tokens)
    codes = list(checkpoint.languages)
    by_token = {number: code for code, number in checkpoint.languages.items()}
    best = torch.stack(list(probabilities)).argmax(dim=-1).tolist()
    return [codes[i] if token == DETECT else by_token[token] for token, i in zip(tokens, best, strict=True)]


def cut(features: Tensor, first: int, frames: int, checkpoint: WhisperCheckpoint) -> Tensor:
    """A window's features from a frame of the encoder on, with silence after them. features: (mel bins, 2 * frames or
    more); what is after these is silence too."""
    size = 2 * count_context(checkpoint, frames - first)
    rest = features[:, 2 * first : 2 * first + size]
    silence = features.min().expand(features.shape[0], size - rest.shape[1])
    return torch.cat([rest, silence], dim=1)
