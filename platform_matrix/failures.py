"""What an error says of the device that it was raised on."""

from __future__ import annotations

from enum import StrEnum


class Failure(StrEnum):
    MEMORY = "memory"  # it has none left; with less to do it may go on
    CONTEXT = "context"  # this process may be able to use it no more; what was computed, or the device, is to blame
    DEVICE = "device"  # it is to blame, and nothing that was computed
