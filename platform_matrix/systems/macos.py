"""What only macOS has."""

from __future__ import annotations

import os
import select
import threading
from typing import Any

from prefork.platform_matrix.systems.posix import Posix


class MacOS(Posix):
    def watch_parent(self, parent: int) -> None:
        """The kernel tells of its end: NOTE_EXIT, kqueue(2)."""
        queue = _select.kqueue()
        event = _select.kevent(parent, _select.KQ_FILTER_PROC, _select.KQ_EV_ADD, _select.KQ_NOTE_EXIT)
        try:
            queue.control([event], 0)
        except ProcessLookupError:  # it ended before we asked
            os._exit(1)
        if os.getppid() != parent:
            os._exit(1)
        threading.Thread(target=_wait_and_end, args=(queue,), name="prefork-parent", daemon=True).start()


def _wait_and_end(queue: Any) -> None:
    while not queue.control(None, 1):
        pass
    os._exit(1)


_select: Any = select  # of which type checkers do not know all on other systems
