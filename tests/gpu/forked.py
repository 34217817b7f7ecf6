"""What is done in a forked process: the one that runs the tests stands for the zygote, and never uses CUDA."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prefork.platform_matrix.devices import initialised_drivers
from prefork.weights.device_memory import DeviceError, WeightsChanged


class Worker:
    """A forked process that does something, says what came of it, and lives until it is ended."""

    def __init__(self, do: Callable[[], Any]) -> None:
        assert not initialised_drivers(), "this process has used CUDA, and must not have: what it forks cannot"
        reading, writing = os.pipe()
        waiting, self._end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._end)
            try:
                result = do()
            except BaseException as error:  # noqa: BLE001  it goes to the test
                result = error if isinstance(error, (DeviceError, WeightsChanged)) else traceback.format_exc()
            with os.fdopen(writing, "wb") as file:
                file.write(pickle.dumps(result))
            os.read(waiting, 1)
            os._exit(0)
        os.close(writing)
        os.close(waiting)
        with os.fdopen(reading, "rb") as file:
            data = file.read()
        self.result = pickle.loads(data) if data else "it died"

    def end(self) -> None:
        with suppress(BrokenPipeError):  # it died
            os.write(self._end, b"!")
        os.close(self._end)
        os.waitpid(self.pid, 0)


def do(what: Callable[[], Any]) -> Any:
    """In a forked process, which then ends."""
    worker = Worker(what)
    worker.end()
    return worker.result
