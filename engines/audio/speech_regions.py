"""Where to cut a recording for a model that hears half a minute at a time: at pauses, found by short-time energy.

Pure functions of an energy track; 12 kB for each minute is all that is kept of a recording.

What lies within a few dB of the noise around it is quiet: the floor follows the recording, as minimum statistics do
(Martin 2001, https://doi.org/10.1109/89.928915). A quiet voice after a loud one is still speech; a tone or noise that
goes on for long is none. Only long pauses are left out; whether the rest is speech, the model has to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefork.engines.audio.reader import SAMPLE_RATE, AudioReader

if TYPE_CHECKING:
    from prefork.engines.audio.channels import Samples
    from prefork.engines.audio.selection import Selection

Levels = NDArray[np.float32]  # (frames,) dB relative to full scale
Marks = NDArray[np.bool_]  # (frames,)

FRAME = 0.02  # seconds
LONGEST = 28.0  # seconds of a span, of the 30 that Whisper hears
OVERLAP = 5.0  # seconds that two spans share where there is no pause to cut at
LEFT_OUT = 5.0  # seconds of a pause that no span holds
_MARGIN = 4.0  # dB above the floor that are quiet still: steady noise varies by less over 0.1 s
_MUTED = (
    -80.0
)  # dB; nothing was recorded, in a recording of the usual loudness. A quiet one of floats has lost nothing:
_FAINTEST = -105.0  # dB; and below it nothing was recorded in any, as the rounding to 16 bits alone is louder
_QUIET = -60.0  # dB; a recording whose loudest frames are below it is made louder
_USUAL = -15.0  # dB of the loudest frames of speech
_ZERO = -119.9  # dB; no sample but zeros
_LEAD = 0.2  # seconds of zeros that are kept before the first sound
_RANGE = 60.0  # dB from the loudest frame to what is nothing beside it
_REACH = 15.0  # seconds to each side that the floor is found in
_RARE = 10  # percent of a stretch that lie below its floor
_SMOOTH = 5  # frames
_EDGE = 0.3  # seconds of a pause that are kept before and after what is said: the weak ends of words
_PAUSE = 0.2  # seconds of quiet that can be cut in; stops are shorter
_LONG_ENOUGH = 1.0  # seconds of quiet beyond which a pause is no better a place
_BLOCK = 30.0  # seconds read at a time


@dataclass(frozen=True, slots=True)
class SpeechSpan:
    """A stretch to be heard at once, in seconds. overlaps: it begins before the last one ends, for want of a pause."""

    start: float
    end: float
    overlaps: bool = False


def read_levels(path: Path, selection: Selection | None = None) -> tuple[Levels, float]:
    """The recording's energy track, and its length in seconds. It is read once, a block at a time."""
    count = 0

    def read_blocks(reader: AudioReader) -> Iterator[Samples]:
        nonlocal count
        while (block := reader.read(count / SAMPLE_RATE, count / SAMPLE_RATE + _BLOCK)).size:
            count += block.size
            yield block

    with AudioReader(path, selection) as reader:
        levels = measure_levels(read_blocks(reader))
    return levels, count / SAMPLE_RATE


def measure_levels(blocks: Iterable[Samples]) -> Levels:
    """The level of each frame, without its mean: an offset is no sound. blocks: all but the last of whole frames; what
    is left of the last one is a frame too."""
    size = round(FRAME * SAMPLE_RATE)
    parts = []
    for block in blocks:
        whole = len(block) // size * size
        parts.append(block[:whole].reshape(-1, size).var(axis=1, dtype=np.float64))
        if whole < len(block):
            parts.append(np.atleast_1d(block[whole:].var(dtype=np.float64)))
    power = np.concatenate(parts) if parts else np.zeros(0)
    return (10 * np.log10(power + 1e-12)).astype(np.float32)


def find_quiet(levels: Levels) -> Marks:
    """Which frames are no louder than the noise around them."""
    smooth = _smooth(levels)
    muted = _find_muted(smooth)
    return (smooth < muted) | (smooth < _find_floor(smooth, muted) + _MARGIN)


def _find_muted(levels: Levels) -> float:
    """The level, dB, below which nothing was recorded."""
    return float(np.clip(levels.max(initial=-np.inf) - _RANGE, _FAINTEST, _MUTED))


def find_gain(levels: Levels) -> float:
    """What to multiply a quiet recording by, so that it is as loud as others: 1 but for those of floats, in which what
    is far below the usual loudness has lost nothing. A model's spectrogram has a floor that would hide its weak sounds.
    """
    loudest = float(_smooth(levels).max(initial=-np.inf))
    if not _FAINTEST <= loudest < _QUIET:
        return 1.0
    return float(10 ** ((_USUAL - loudest) / 20))


def _smooth(levels: Levels) -> Levels:
    padded = np.pad(levels, _SMOOTH // 2, mode="edge") if len(levels) else np.zeros(_SMOOTH - 1, np.float32)
    return np.convolve(padded, np.full(_SMOOTH, 1 / _SMOOTH, np.float32), "valid").astype(np.float32)


def _find_floor(levels: Levels, muted: float) -> Levels:
    """The level of the noise around each frame: what a tenth of the frames in its reach lie below, muted ones aside."""
    floor = np.empty_like(levels)
    step, reach = (round(seconds / FRAME) for seconds in (1.0, _REACH))
    for first in range(0, len(levels), step):
        around = levels[max(0, first - reach) : first + step + reach]
        audible = around[around >= muted]
        floor[first : first + step] = np.percentile(audible, _RARE) if len(audible) else muted
    return floor


def plan_spans(levels: Levels, seconds: float) -> list[SpeechSpan]:
    """Spans of at most LONGEST seconds that hold everything but long pauses; none if nothing was recorded.

    seconds: length of the recording. A span ends in the longest pause of its second half, the later of two that are
    long enough. Where there is none, it ends at its quietest place near its end, and the next begins OVERLAP before.
    """
    begin = int(np.argmax(levels > _ZERO)) - round(_LEAD / FRAME) if len(levels) else 0
    if begin > 0:  # a film had begun, and its sound had not: the spans are those of the sound alone
        late = begin * FRAME
        spans = plan_spans(levels[begin:], seconds - late)
        return [SpeechSpan(round(s.start + late, 3), round(s.end + late, 3), s.overlaps) for s in spans]
    quiet = find_quiet(levels)
    if quiet.all():  # noise; or, in a short recording of the usual loudness, one long sound
        return [SpeechSpan(0.0, seconds)] if seconds <= LEFT_OUT and (levels >= _MUTED).any() else []
    pauses = _list_runs(quiet)
    found: list[SpeechSpan] = []
    for start, end in _list_stretches(pauses, seconds):
        found += _cut(start, end, pauses, _smooth(levels))
    return [SpeechSpan(round(span.start, 3), round(span.end, 3), span.overlaps) for span in found]


def _list_runs(marks: Marks) -> list[tuple[float, float]]:
    """Where marked frames follow one another, in seconds."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    return [(float(start), float(end)) for start, end in changes.reshape(-1, 2) * FRAME]


def _list_stretches(pauses: list[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    """What lies between the long pauses, with an edge of them."""
    edges = [0.0]
    for start, end in pauses:
        first, last = start <= 0, end >= seconds - FRAME
        if end - start >= LEFT_OUT or ((first or last) and end - start > 2 * _EDGE):
            edges += [0.0 if first else start + _EDGE, seconds if last else end - _EDGE]
    edges.append(seconds)
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]


def _cut(start: float, end: float, pauses: list[tuple[float, float]], levels: Levels) -> list[SpeechSpan]:
    """A stretch in spans."""
    spans: list[SpeechSpan] = []
    overlaps = False
    while end - start > LONGEST:
        limit = start + LONGEST
        within = [(max(a, start + LONGEST / 2), min(b, limit)) for a, b in pauses if a < limit and b < end - _EDGE]
        within = [(a, b) for a, b in within if b - a >= _PAUSE]
        if within:
            a, b = max(within, key=lambda pause: (min(pause[1] - pause[0], _LONG_ENOUGH), pause[1]))
            spans.append(SpeechSpan(start, min(a + _EDGE, (a + b) / 2), overlaps))
            whole = next(last for _, last in pauses if last >= b)
            start, overlaps = max(whole - _EDGE, (a + b) / 2), False
        else:
            cut = _find_quietest(levels, limit - OVERLAP / 2, limit)
            spans.append(SpeechSpan(start, cut, overlaps))
            start, overlaps = cut - OVERLAP, True
    return [*spans, SpeechSpan(start, end, overlaps)]


def _find_quietest(levels: Levels, start: float, end: float) -> float:
    first = round(start / FRAME)
    return (first + int(np.argmin(levels[first : round(end / FRAME)])) + 0.5) * FRAME


def find_loudest(levels: Levels, spans: list[SpeechSpan], count: int) -> list[SpeechSpan]:
    """The spans with the most frames that are not quiet, at most `count`, in order."""
    quiet = find_quiet(levels)

    def count_loud(span: SpeechSpan) -> Any:
        return np.count_nonzero(~quiet[round(span.start / FRAME) : round(span.end / FRAME)])

    return sorted(sorted(spans, key=count_loud, reverse=True)[:count], key=lambda span: span.start)
