"""The audio reader: any recording FFmpeg decodes, as mono 16 kHz samples, a span at a time.

The whole recording is never in memory, and a span reads the same samples whether it was reached by decoding
or by seeking. Three things see to that:

- A seek is made only where it is exact: where timestamps count whole samples (Matroska's and WebM's count
  milliseconds, and would land it up to 24 samples off), and with codecs that forget (AAC fills bands with noise
  from a generator that is never reset). The rest is decoded from the start, at 800 to 2500 times real time.
- Decoding begins a second early, because lossy decoders carry state from packet to packet.
- Resampling begins at an input sample where the resampler's phase is what it is at sample 0.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av.error
import av.filter
import numpy as np
from av.audio.frame import AudioFrame

from prefork.engines.audio.container import ABSURD, AudioError
from prefork.engines.audio.recording import Recording, probe
from prefork.engines.audio.sample_stream import SampleStream
from prefork.engines.audio.selection import Selection
from prefork.engines.parquet.row_path import parse
from prefork.platform_matrix.systems import SYSTEM

if TYPE_CHECKING:
    from types import TracebackType

    from prefork.engines.audio.channels import Samples

__all__ = ["SAMPLE_RATE", "AudioError", "AudioReader", "Recording", "Selection", "probe", "read_audio"]

SAMPLE_RATE = 16_000  # Hz

_READ_AHEAD = 2 * SAMPLE_RATE  # samples; further ahead, what lies between is not worth resampling
_KEPT = 30 * SAMPLE_RATE  # samples at most that are kept once they were read: two engines read the same sentence
_FILTER_REACH = 64  # output samples; FFmpeg's resampling filter reaches 16 of them to each side


class AudioReader:
    """An open recording. Holds no more than a few decoded frames between reads.

    Times are seconds from the beginning of the film, if it has pictures or other sound that begin before; otherwise
    from the first sample of the audio stream, whatever its timestamps start with. Where data is damaged or
    missing in the middle there is silence, so that what follows keeps its time; only raw MP3 and AAC streams (.mp3,
    .aac) have no timestamps to tell how much is missing.
    """

    def __init__(self, path: Path | str, selection: Selection | None = None) -> None:
        """Opens the recording. Raises AudioError as `probe` does, and if nothing in it can be decoded."""
        self.path = Path(path)
        self._stream = SampleStream(self.path, selection)
        self._last: tuple[int, float, Samples] = (0, 0, np.zeros(0, np.float32))  # what was read last, if it is short
        self._start(0)

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()

    def read(self, start: float, end: float) -> Samples:
        """(n,) float32: samples round(start * 16000) to round(end * 16000), fewer at the recording's end.

        start, end: seconds; `end` may be infinite. Raises ValueError unless 0 <= start <= end, and AudioError
        if the file cannot be read any more.
        """
        if not 0 <= start <= end or math.isinf(start):
            raise ValueError(f"a span must have 0 <= start <= end, not {start} to {end}")
        first = round(start * SAMPLE_RATE)
        last = math.inf if math.isinf(end) else round(end * SAMPLE_RATE)
        begin, end_of_last, known = self._last
        if begin <= first and last <= end_of_last:
            return known[first - begin : int(min(last - begin, len(known)))].copy()
        pieces = []
        try:
            self._move_to(first)
            while self._next < last and (piece := self._take(last - self._next)) is not None:
                pieces.append(piece)
        except av.error.FFmpegError as error:  # of its filters
            reason = ABSURD if isinstance(error, MemoryError) else error.strerror
            raise AudioError(f"{self.path} is damaged: {reason}; copy it again") from error
        samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        if len(samples) <= _KEPT:
            self._last = first, math.inf if self._next < last else last, samples.copy()
        return samples

    def _move_to(self, first: int) -> None:
        """Makes `first`, or the end of the recording, the next sample taken."""
        if not 0 <= first - self._next <= _READ_AHEAD:
            self._start(first)
        while self._next < first and self._take(first - self._next) is not None:
            pass

    def _start(self, first: int) -> None:
        """Begins resampling where the phase is that of sample 0, early enough for the filter to be filled."""
        common = math.gcd(self._stream.rate, SAMPLE_RATE)
        period = SAMPLE_RATE // common
        periods = max(0, first - _FILTER_REACH) // period
        self._next = periods * period
        self._pending = np.zeros(0, np.float32)
        self._pieces = _resample(self._stream.read_from(periods * (self._stream.rate // common)), self._stream.rate)

    def _take(self, most: float) -> Samples | None:
        """The next samples, 1 to `most` of them; None at the end of the recording."""
        while not self._pending.size:
            piece = next(self._pieces, None)
            if piece is None:
                return None
            self._pending = piece
        count = int(min(most, self._pending.size))
        taken, self._pending = self._pending[:count], self._pending[count:]
        self._next += count
        return taken


def _resample(blocks: Iterator[Samples], rate: int) -> Iterator[Samples]:
    """The same stream at 16 kHz. The first sample out is the first sample in."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    graph = av.filter.Graph()
    graph.threads = 1  # the default starts a thread per core
    source = graph.add_abuffer(sample_rate=rate, format="fltp", layout="mono", time_base=Fraction(1, rate))
    graph.link_nodes(source, graph.add("aresample", str(SAMPLE_RATE)), graph.add("abuffersink")).configure()
    for block in blocks:
        frame = AudioFrame.from_ndarray(block[np.newaxis], "fltp", "mono")
        frame.sample_rate = rate
        graph.push(frame)
        yield from _pull(graph)
    graph.push(None)
    yield from _pull(graph)


def _pull(graph: av.filter.Graph) -> Iterator[Samples]:
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):  # wants more input; has given all
            return
        assert isinstance(frame, AudioFrame)
        yield frame.to_ndarray()[0]


class _OpenReader:
    """The process's one open reader: successive segments of a file do not open it again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[Path, Selection | None, int, int] | None = None
        self._reader: AudioReader | None = None

    def read(self, path: Path, start: float, end: float, selection: Selection | None) -> Samples:
        with self._lock:
            try:
                return self._get(path, selection).read(start, end)
            except AudioError:
                self._drop()  # what a failed reader reads next would look like the recording's end
                raise

    def _get(self, path: Path, selection: Selection | None) -> AudioReader:
        try:
            address = parse(path)
            status = (path if address is None else address.file).stat()
            key = (path, selection, status.st_mtime_ns, status.st_size)
        except OSError:
            key = None  # opening it will say what is wrong
        if self._reader is None or key is None or key != self._key:
            self._drop()
            self._reader, self._key = AudioReader(path, selection), key
        return self._reader

    def _drop(self) -> None:
        reader, self._reader, self._key = self._reader, None, None
        if reader is not None:
            reader.close()


_open_reader = _OpenReader()


def _forget_reader() -> None:
    global _open_reader  # noqa: PLW0603
    _open_reader = _OpenReader()


# A child shares the parent's file offset: reading on with the parent's reader would garble both.
SYSTEM.run_at_fork(after_in_child=_forget_reader)


def read_audio(path: Path | str, start: float, end: float, selection: Selection | None = None) -> Samples:
    """`AudioReader.read` through the one reader the process keeps open, as long as the file stays the same.

    selection: the track and the channels, as a job has them; by default the best track, without channels that cancel
    others.

    Raises AudioError if the file cannot be opened or read.
    """
    return _open_reader.read(Path(path), start, end, selection)
