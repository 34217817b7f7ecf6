"""The stages whose memory is monitored, with the names of their checkpoints and cleanups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class MonitoredStage:
    """A part of the pipeline: its first checkpoint, its cleanups, its last checkpoint. PIPELINE contains the others.
    Engines may have stages of their own: see `find`."""

    title: str
    before: str
    cleanups: tuple[str, ...]
    after: str

    PIPELINE: ClassVar[MonitoredStage]
    AUDIO_PREPROCESSING: ClassVar[MonitoredStage]
    TRANSCRIPTION: ClassVar[MonitoredStage]
    DIARIZATION: ClassVar[MonitoredStage]
    SPEAKER_ALIGNMENT: ClassVar[MonitoredStage]

    @classmethod
    def find(cls, name: str) -> MonitoredStage:
        """The stage of an engine by what it calls it; a new one if it is none of those here.

        >>> MonitoredStage.find("diarization") is MonitoredStage.DIARIZATION
        True
        >>> MonitoredStage.find("machine_translation").checkpoints[0]
        'Before Machine Translation'
        """
        title = name.replace("_", " ").title()
        known = next((stage for stage in _STAGES if stage.title == title), None)
        return known or cls(title, f"Before {title}", (title,), f"After {title} (post-cleanup)")

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names, in order, without those of the stages that it contains."""
        around = (f"{when} {name} Cleanup" for name in self.cleanups for when in ("Before", "After"))
        return tuple(name for name in (self.before, *around, self.after) if name)


MonitoredStage.PIPELINE = MonitoredStage("Pipeline", "Pipeline Initialization", ("Final",), "")
MonitoredStage.AUDIO_PREPROCESSING = MonitoredStage(
    "Audio Preprocessing", "Before Audio Preprocessing", (), "After Audio Preprocessing"
)
MonitoredStage.TRANSCRIPTION = MonitoredStage(
    "Transcription", "Before Transcription", ("Whisper",), "After Transcription (post-cleanup)"
)
MonitoredStage.DIARIZATION = MonitoredStage(
    "Diarization", "Before Diarization", ("Waveform", "Diarization Model"), "After Diarization (post-cleanup)"
)
MonitoredStage.SPEAKER_ALIGNMENT = MonitoredStage(
    "Speaker Alignment", "Before Speaker Alignment", ("Alignment Tensors",), "After Speaker Alignment (post-cleanup)"
)
_STAGES = (
    MonitoredStage.PIPELINE,
    MonitoredStage.AUDIO_PREPROCESSING,
    MonitoredStage.TRANSCRIPTION,
    MonitoredStage.DIARIZATION,
    MonitoredStage.SPEAKER_ALIGNMENT,
)
CHECKPOINTS = (
    MonitoredStage.PIPELINE.before,
    *(name for stage in _STAGES[1:] for name in stage.checkpoints),
    *MonitoredStage.PIPELINE.checkpoints[1:],
)
