"""Which tokens a Whisper decoder may write next: rules over the logits of windows that are written together.

As https://github.com/openai/whisper, decoding.py (ApplyTimestampRules, SuppressTokens, SuppressBlank), has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prefork.engines.whisper.checkpoint import WhisperCheckpoint

_LATEST_BEGIN = 50  # steps of 0.02 s before which the first timestamp has to lie


def place(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Whole numbers as a tensor on the device, which is not waited for."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


class TimestampRules:
    """Which tokens may follow: timestamps come in pairs, except before the end, begin in the first second and do not go
    back; and one has to come where it is likelier than any word.

    device: where the logits are; what the rules need lies there from the beginning.
    """

    def __init__(self, checkpoint: WhisperCheckpoint, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self.begin, self.eot = checkpoint.timestamp_begin, checkpoint.eot
        special = range(self.eot + 1, self.begin)
        self._never = place(sorted({*checkpoint.suppress_tokens, *special} - {self.eot}), device)
        self._first = place(checkpoint.begin_suppress_tokens, device)
        self._stamps = torch.arange(self.begin, checkpoint.config.vocab_size, device=device)

    def apply(self, logits: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """logits: (rows, vocabulary), of what follows the tokens; changed in place. written: the tokens of each row,
        without the prompt, as many of all."""
        begin, eot = self.begin, self.eot
        logits.index_fill_(1, self._never, -math.inf)
        if not written[0]:
            logits.index_fill_(1, self._first, -math.inf)
            logits[:, :begin] = -math.inf
            logits[:, begin + _LATEST_BEGIN + 1 :] = -math.inf
            return logits
        closed, earliest = place(list(zip(*map(self._bound, written), strict=True)), logits.device)
        logits[:, :eot].masked_fill_(closed.bool()[:, None], -math.inf)
        words, stamps = logits[:, :begin], logits[:, begin:]
        stamps.masked_fill_(self._stamps < earliest[:, None], -math.inf)
        certain = stamps.logsumexp(dim=-1) > words.amax(dim=-1)
        words.masked_fill_(certain[:, None], -math.inf)
        return logits

    def _bound(self, tokens: Sequence[int]) -> tuple[bool, int]:
        """Whether no word may follow, and the earliest timestamp that may."""
        stamped = [token >= self.begin for token in tokens[-2:]]
        last = max((token for token in tokens if token >= self.begin), default=self.begin - 1)
        if not stamped[-1]:
            return False, last + 1
        if all(stamped):  # a pair, or the first one: a word has to follow
            return False, self.begin + len(self._stamps)
        return True, last  # one that ends a sentence: the next begins, or the end
