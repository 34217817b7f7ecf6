"""/proc, which Linux describes processes in: whether it is there, and this process's own. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from prefork.platform_matrix.errors import FactsError


def check_proc() -> None:
    """Raises FactsError if it is missing, or another PID namespace's: what processes use of memory, which threads they
    have, and what they hold open is read there."""
    if sys.platform != "linux":
        return
    try:
        itself = str(Path("/proc/self").readlink())
    except OSError as error:
        raise FactsError(f"/proc is not mounted here ({error.strerror}); mount it: mount -t proc proc /proc") from error
    if itself != str(os.getpid()):
        raise FactsError(
            f"/proc is another PID namespace's: process {os.getpid()} is called {itself} there; "
            "mount this one's: mount -t proc proc /proc, or unshare --mount-proc"
        )
