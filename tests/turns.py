"""Two processes run the tests, one module each at a time. What measures time or memory runs with nothing beside it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def take_turn(alone: bool) -> Iterator[None]:
    """Waits until this test may run: beside tests that do not mind, or alone. Who waits to be alone is next."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:  # one process
        yield
        return
    import fcntl

    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    folder = Path(tempfile.gettempdir())
    with open(folder / f"prefork-{run}.gate", "a+b") as gate, open(folder / f"prefork-{run}.room", "a+b") as room:
        fcntl.lockf(gate, kind)
        fcntl.lockf(room, kind)
        if not alone:
            fcntl.lockf(gate, fcntl.LOCK_UN)
        yield  # closing the files gives both back
