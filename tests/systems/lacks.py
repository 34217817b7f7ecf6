"""Tests that name what this system has not: they are skipped, with the name as the reason, and nothing else is."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

from tests.systems import LINUX_FILES, POSIX, SYSTEM


def find_lack(error: BaseException) -> str | None:
    """What the code of a test itself needs and this system has not; None if that is not what the error is about, or if
    it is prefork that needs it."""
    system = os.environ.get(SYSTEM) or sys.platform
    if system == "linux" or not _is_of_test(error):
        return None
    match error:
        case ModuleNotFoundError(name=str(name)) if name in POSIX:
            what = f"the module {name}"
        case AttributeError(name=str(name), obj=types.ModuleType() as module) if _is_known(
            module.__name__, name, system
        ):
            what = f"{module.__name__}.{name}"
        case FileNotFoundError(filename=str(name)) if name.startswith(LINUX_FILES):
            what = name
        case _:
            return None
    return f"needs {what}, which {system} has not"


def _is_known(module: str, name: str, system: str) -> bool:
    """Whether Linux has it."""
    from tests.systems.stubs import find_missing

    return module in sys.stdlib_module_names and name in find_missing(module, system)


def _is_of_test(error: BaseException) -> bool:
    """Whether the code that failed, Python's library left out, is a test's."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith("tests.systems"):
            found = name
        trace = trace.tb_next
    return found.partition(".")[0] == "tests" or Path(found).name.startswith("test_")
