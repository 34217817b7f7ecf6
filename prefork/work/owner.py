"""The owner of a device's weights: puts them there once, exports them, and holds them until all readers are gone.

A process of its own, because it must outlive every worker, and a fresh one that imports no torch: it starts in a
fifth of a second, and of the weights it has 67 MB at a time in its memory while it copies, and nothing afterwards.

Told UploadWeights, it answers WeightsExported, and frees them at its channel's end; IPCUnavailable, if another strategy
must be used; or LoadFailed, if no other would help: no device, no memory.
"""

from __future__ import annotations

import contextlib
import os
import time

from prefork.weights.device_memory import DeviceError, make_memory
from prefork.wire.child import open_channel
from prefork.wire.messages import (
    IPCUnavailable,
    LoadFailed,
)
from prefork.wire.owner_messages import UploadWeights, WeightsExported


def main() -> None:
    """Entry point of the owner process. CUDA_VISIBLE_DEVICES says which device is its own."""
    channel = open_channel()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the supervisor has gone
        order: UploadWeights = channel.receive()[0]
        started = time.monotonic()
        try:
            memory = make_memory(order.kind)
            export = memory.upload(order.path, order.size)
        except DeviceError as error:
            failed = LoadFailed(str(error), device_failed=error.blames_device)
            channel.send(IPCUnavailable(str(error)) if error.refuses_ipc else failed)
            return
        channel.send(WeightsExported(export, time.monotonic() - started))
        with contextlib.suppress(EOFError):
            channel.receive()
        memory.free()
    os._exit(0)  # the driver's own clean-up at exit waits for nobody
