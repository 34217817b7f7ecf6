"""Where the output goes: what it can show, and what it must never do."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefork.platform_matrix.systems import SYSTEM

if TYPE_CHECKING:
    from rich.console import Console

_UNFOLDED = 100_000  # characters of a line in a file or a pipe, where whoever reads it folds it
# What Jupyter and ipykernel set for what a cell starts, and for nothing else; then those of hosted notebooks.
_NOTEBOOKS = ("JPY_PARENT_PID", "JPY_SESSION_NAME", "COLAB_RELEASE_TAG", "COLAB_JUPYTER_IP", "KAGGLE_KERNEL_RUN_TYPE")


def prepare_streams() -> None:
    """What the encoding of stdout or stderr lacks is escaped there, and ends nothing. What is closed (`>&-`) takes all,
    as /dev/null does."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  for the whole program
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def make_console(*, stderr: bool = False) -> Console:
    """For stdout or stderr. Colours and widths are a terminal's; elsewhere no line is folded."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream.isatty()  # FORCE_COLOR makes rich take anything for a terminal
    return Console(
        stderr=stderr,
        force_terminal=is_terminal,
        width=None if is_terminal else _UNFOLDED,
        color_system="auto" if is_terminal and "NO_COLOR" not in os.environ else None,
    )


def moves_cursor(is_terminal: bool, environment: Mapping[str, str]) -> bool:
    """Whether what was shown can be drawn over. A notebook's cell has a terminal that keeps all that it is sent.

    >>> moves_cursor(True, {"TERM": "xterm"}), moves_cursor(True, {"TERM": "dumb"}), moves_cursor(False, {})
    (True, False, False)
    """
    if not is_terminal or environment.get("TERM", SYSTEM.terminal) in ("dumb", "unknown"):
        return False
    inline = environment.get("MPLBACKEND", "").startswith("module://")  # which ipykernel sets for its children too
    return not inline and not any(name in environment for name in _NOTEBOOKS)
