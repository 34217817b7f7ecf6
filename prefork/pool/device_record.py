"""The record of a device: what has failed there and what was done. Says when the device is to blame. Pure.

A fault that the error's code says is the hardware's is no segment's, and two with nothing done in between mean that the
device is dead. A context that breaks may be a segment's doing. But a device that has done nothing right since it last
blamed a segment is not believed again.
"""

from __future__ import annotations

from dataclasses import dataclass

_MOST_FAULTS = 2


@dataclass(slots=True)
class DeviceRecord:
    """>>> record = DeviceRecord()
    >>> record.note_fault(), record.note_fault()
    (False, True)
    >>> record.blames(), record.note_done(), record.blames(), record.blames()
    (False, None, True, False)
    """

    faults: int = 0  # in a row, without anything done
    has_done: bool = False  # something, since it last blamed a segment

    def note_done(self) -> None:
        self.faults, self.has_done = 0, True

    def note_fault(self) -> bool:
        """Of the hardware. Whether the device is dead."""
        self.faults += 1
        return self.faults >= _MOST_FAULTS

    def blames(self) -> bool:
        """A segment has broken the context, again: whether it may be blamed for it."""
        believed, self.has_done = self.has_done, False
        return believed
