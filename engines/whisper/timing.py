"""Words' times from where a Whisper decoder looked when it wrote them. Pure functions of tensors.

The method is openai/whisper's, whisper/timing.py (find_alignment): the attention of the alignment heads, normalised
over the tokens, smoothed by a median filter, averaged over the heads; then dynamic time warping. Words are taken out of
pauses afterwards, as stable-ts does.

How late the attention is depends on the checkpoint, and nothing in it says so. whisper-tiny.en is 100 ms late where one
word follows the other without a pause: on a synthesiser's words (tests/benchmarks/whisper_alignment.py), on those of
jfk.flac and of four recordings of non-native speakers as the CTC aligner times them. A start_offset_seconds of -0.1 in
its config.json takes that back; without one nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prefork.engines.alignment.viterbi import separate_words
from prefork.engines.audio.speech_regions import measure_levels
from prefork.engines.text.document import Timing, Word

if TYPE_CHECKING:
    from prefork.engines.whisper.checkpoint import WhisperCheckpoint

FRAME = 0.02  # seconds of one of the encoder's frames
MEDIAN_WIDTH = 7  # frames
SPACELESS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # languages that are written without spaces
SHORTEST_PAUSE = 6  # frames; the closures of stops are shorter
REACH = 15  # frames that an edge may be off a pause
QUIET = 0.4  # of the way from the quietest to the loudest frames, in dB
_SMOOTH = 5  # frames
_CONTRAST = 6.0  # dB from the quietest to the loudest frames, below which there is no telling speech from pauses
_PREPENDED = "\"'“¿([{-"
_APPENDED = "\"'.。,,!!??::”)]}、"

Pause = tuple[int, int]  # its first frame, and the first after it


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Where some tokens that belong together are heard. start, end: frames. score: their mean probability."""

    start: int
    end: int
    score: float


def time_words(
    checkpoint: WhisperCheckpoint,
    tokens: Sequence[int],
    attention: Tensor,
    log_probs: Tensor,
    origin: float,
    limit: float,
    language: str | None = None,
    pauses: Sequence[Pause] = (),
) -> list[Word]:
    """The words that the tokens spell, with their times, in order and apart; punctuation belongs to the word it
    stands at.

    tokens: those of text alone. attention, log_probs: as `attend` gives them for prompt and text. origin: seconds at
    which the first frame begins. limit: seconds that no time may exceed. language: Whisper's code. pauses: as
    `list_pauses` finds them.
    """
    groups = merge_punctuation(split_words(checkpoint, tokens, language))
    if not groups:
        return []
    spans = find_spans([len(group) for _, group in groups], attention, log_probs, lag=checkpoint.lag)
    return make_words([text.strip() for text, _ in groups], leave_pauses(spans, pauses), origin, limit)


def make_words(texts: Sequence[str], spans: Sequence[TokenSpan], origin: float, limit: float) -> list[Word]:
    words = [
        Word(text, origin + span.start * FRAME, origin + span.end * FRAME, span.score, Timing.ATTENTION)
        for text, span in zip(texts, spans, strict=True)
    ]
    return separate_words(words, origin, limit)


def find_spans(
    counts: Sequence[int], attention: Tensor, log_probs: Tensor, first: int = 0, last: int | None = None, lag: int = 0
) -> list[TokenSpan]:
    """Where groups of tokens are heard, one after the other without gaps.

    counts: the tokens of each group; their sum is the length of the text. attention: (prompt + text, frames),
    log_probs: (prompt + text - 1,), as `attend` gives them. first, last: frames that all of them lie
    between, if that is known. lag: frames that the attention is late.

    Where it is not known, the row before that of the first token takes up what is before it: with that of the first
    token alone, as published, the first word begins with the first frame whatever there is. Medians of the first words
    of tests/benchmarks/whisper_alignment.py, whose recordings begin with 175 ms of silence: 175 ms without, 55 with.
    """
    total = sum(counts)
    led = first == 0 and len(attention) > total + 1
    weights = attention[len(attention) - total - 1 - led :, first:last].cpu().numpy()
    edges = first + find_edges(weights)[int(led) :]
    edges[1:-1] = np.maximum(edges[1:-1] - lag, edges[0])
    probabilities = log_probs[len(log_probs) - total :].float().exp()
    spans, reached = [], 0
    for count in counts:
        score = float(probabilities[reached : reached + count].mean())
        spans.append(TokenSpan(int(edges[reached]), int(edges[reached + count]), score))
        reached += count
    return spans


def find_quiet(waveform: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(frames,) whether a frame is quiet beside the others.

    waveform: (samples,) at 16 kHz, a window in which somebody speaks. Of four recordings of non-native speakers, the
    share of words after a pause that begin within 0.2 s of where the CTC aligner has them: 24 % with what is within
    4 dB of the noise, 38 % with QUIET = 0.2, 63 % with 0.4, 65 % with 0.5,
    which cuts into the words of a clean recording.
    """
    levels = measure_levels([waveform])
    smooth = np.convolve(np.pad(levels, _SMOOTH // 2, mode="edge"), np.full(_SMOOTH, 1 / _SMOOTH), "valid")
    low, high = np.percentile(smooth, [10, 95])
    quiet: NDArray[np.bool_] = smooth < (low + QUIET * (high - low) if high - low >= _CONTRAST else -math.inf)
    return quiet


def list_pauses(quiet: NDArray[np.bool_]) -> list[Pause]:
    """The runs of quiet frames that are too long to be part of a word. quiet: (frames,)."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in changes.reshape(-1, 2) if end - start >= SHORTEST_PAUSE]


def leave_pauses(spans: Sequence[TokenSpan], pauses: Sequence[Pause]) -> list[TokenSpan]:
    """Ends and begins words where there is a pause at the edge between them, or no more than REACH frames from it.

    Attention has no row for silence: it goes to a word beside it, most often to the one after it. stable-ts moves
    words out of silence in the same way (https://github.com/jianfch/stable-ts, `suppress_silence`).
    """
    starts, ends = [span.start for span in spans], [span.end for span in spans]
    edges = [spans[0].start, *ends]
    for pause in pauses:
        begin, over = min(pause[0], edges[-1]), max(pause[1], edges[0])
        near = [i for i, edge in enumerate(edges) if begin - REACH <= edge <= over + REACH]
        if not near:
            continue
        chosen = min(near, key=lambda i: (max(begin - edges[i], edges[i] - over, 0), -i))
        if chosen > 0 and begin > starts[chosen - 1]:
            ends[chosen - 1] = begin
        if chosen < len(spans) and over < ends[chosen]:
            starts[chosen] = over
    return [TokenSpan(start, end, span.score) for span, start, end in zip(spans, starts, ends, strict=True)]


def weigh_head(attention: Tensor) -> Tensor:
    """One head's attention, (..., tokens, frames), to how much more each token looks at a frame than the others do."""
    deviation, mean = torch.std_mean(attention.float(), dim=-2, keepdim=True, correction=0)
    return filter_median((attention - mean) / deviation.clamp_min(1e-12))


def filter_median(values: Tensor, width: int = MEDIAN_WIDTH) -> Tensor:
    """The median of each frame and its neighbours, along the last dimension; the edges are mirrored."""
    reach = width // 2
    if values.shape[-1] <= reach:
        return values
    padded = F.pad(values, (reach, reach), mode="reflect")
    return padded.unfold(-1, width, 1).median(dim=-1).values


def find_edges(weights: NDArray[Any]) -> NDArray[np.int64]:
    """The frame at which each row of the cheapest path begins, (rows,). weights: (rows, frames).

    Dynamic time warping: the path goes from the first row and frame to the last ones, by one row, one frame or both at
    a time, and has the largest sum of weights.
    """
    cost = _accumulate(-weights.astype(np.float64))
    row, frame = cost.shape[0] - 1, cost.shape[1] - 1
    edges = np.zeros(cost.shape[0], np.int64)
    edges[row] = frame
    while row or frame:
        both = cost[row - 1, frame - 1] if row and frame else math.inf
        up = cost[row - 1, frame] if row else math.inf
        left = cost[row, frame - 1] if frame else math.inf
        best = min(both, up, left)
        row, frame = (row - 1, frame - 1) if both == best else (row - 1, frame) if up == best else (row, frame - 1)
        edges[row] = frame
    return edges


def _accumulate(cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """(rows, frames) the cost of the cheapest path up to each cell, row by row: within a row, a path that came down at
    frame k costs the row's running sum from k on."""
    total = np.empty_like(cost)
    total[0] = np.cumsum(cost[0])
    for row in range(1, len(cost)):
        running = np.cumsum(cost[row])
        above = total[row - 1]
        down = np.minimum(above, np.concatenate(([math.inf], above[:-1])))
        before = np.concatenate(([0.0], running[:-1]))
        total[row] = running + np.minimum.accumulate(down - before)
    return total


def split_words(
    checkpoint: WhisperCheckpoint, tokens: Sequence[int], language: str | None
) -> list[tuple[str, list[int]]]:
    """Each word's text, with the space before it, and its tokens: "co-operate", "1,000" and "you." are words."""
    characters = _split_characters(checkpoint, tokens)
    if language in SPACELESS:
        return characters
    words: list[tuple[str, list[int]]] = []
    for text, group in characters:
        if not words or text.startswith(" "):
            words.append((text, group))
        else:
            words[-1] = (words[-1][0] + text, words[-1][1] + group)
    return words


def _split_characters(checkpoint: WhisperCheckpoint, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
    """The shortest runs of tokens that are whole characters: a character may be several tokens."""
    found: list[tuple[str, list[int]]] = []
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        text = checkpoint.tokenizer.decode(pending)
        if "\N{REPLACEMENT CHARACTER}" not in text:
            found.append((text, pending))
            pending = []
    if pending:  # the text ends within a character
        found.append((text, pending))
    return found


def merge_punctuation(words: Sequence[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """Opening marks go to the word after them, closing ones to the word before."""
    merged: list[tuple[str, list[int]]] = []
    for text, tokens in words:
        opened = bool(merged) and merged[-1][0].startswith(" ") and merged[-1][0].strip() in _PREPENDED
        closes = bool(merged) and not merged[-1][0].endswith(" ") and text in _APPENDED
        if opened or closes:
            merged[-1] = (merged[-1][0] + (text.lstrip() if opened else text), merged[-1][1] + tokens)
        else:
            merged.append((text, list(tokens)))
    return merged
