"""A spawned worker: a fresh process that loads by itself what it cannot inherit, and shares what it can.

The first one puts the weights into a file; the others load theirs, find them there byte for byte, and map those.
"""

from __future__ import annotations

import contextlib
import os
import time

from prefork.wire.child import open_channel
from prefork.wire.messages import ModelsLoaded
from prefork.wire.shared_tracker import share_tracker
from prefork.work import loading
from prefork.work.worker import serve  # torch is imported while others load


def main() -> None:
    """Entry point of a spawned worker. It is told what to load when it is its turn: one copy at a time."""
    started = time.monotonic()
    channel = open_channel()
    try:
        specification, fds = channel.receive()
    except EOFError:
        return
    for fd in fds:
        share_tracker(fd)
    try:
        loaded = loading.load(specification)
        inventory = loading.describe(loaded, started)
    except Exception as error:  # noqa: BLE001  whatever goes wrong while loading ends the run, in words
        channel.send(loading.refuse(error, specification))
        return
    channel.send(ModelsLoaded(inventory))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the supervisor has gone
        serve(channel, loaded, specification.plan.threads)
    os._exit(0)  # tearing the interpreter down takes a second and frees what the kernel frees at once
