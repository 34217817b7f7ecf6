"""The owner of a device's weights: puts them there once, exports them, and holds them until all readers are gone.

A process of its own, because it must outlive every worker, and a fresh one that imports no torch: it starts in a
fifth of a second, and of the weights it has 67 MB at a time in its memory while it copies, and nothing afterwards.

    order:   (path, size, kind)                             a file with the weights, its bytes, "cuda" or "host"
    answer:  ("exported", Export, seconds)                  the channel's end is then the sign to free
             ("refused", reason)                            memory cannot be shared on this device: use another strategy
             ("failed", reason)                             nor would another strategy help: no device, no memory
"""

from __future__ import annotations

import contextlib
import os
import time

from prefork.weights.device_memory import DeviceError, make_memory
from prefork.wire.child import open_channel


def main() -> None:
    """Entry point of the owner process. CUDA_VISIBLE_DEVICES says which device is its own."""
    channel = open_channel()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the supervisor has gone
        (path, size, kind), _ = channel.receive()
        started = time.monotonic()
        try:
            memory = make_memory(kind)
            export = memory.upload(path, size)
        except DeviceError as error:
            channel.send(("refused" if error.refuses_ipc else "failed", str(error)))
            return
        channel.send(("exported", export, time.monotonic() - started))
        with contextlib.suppress(EOFError):
            channel.receive()
        memory.free()
    os._exit(0)  # the driver's own clean-up at exit waits for nobody
