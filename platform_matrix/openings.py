"""Where in the code files, sockets and processes were opened: what an inherited descriptor itself does not say.

Python tells an audit hook of each (https://docs.python.org/3/library/audit_events.html); what native code opens it does
not see. A hook stays for the life of a process, so only a process that examines another's code has one.
"""

from __future__ import annotations

import os
import sys
import weakref
from types import FrameType
from typing import Any

from prefork.platform_matrix.frames import Frame, is_standard, locate

_MOST_FRAMES = 40


class Openings:
    """What was opened since `watch`, each with its place in the code."""

    def __init__(self) -> None:
        self._files: dict[str, dict[tuple[int | None, str], None]] = {}  # by absolute path: access, place; each once
        self._sockets: list[tuple[weakref.ref[Any], str]] = []
        self._programs: dict[tuple[str, ...], str] = {}  # by their arguments

    def watch(self) -> None:
        """From now on, in this process and in those that it forks."""
        sys.addaudithook(self._note)

    def find_file(self, path: str, access: int | None = None) -> str:
        """Every place where a file was opened; empty if no Python code has opened it.

        path: without links. access: os.O_RDONLY and so on, if it is known.
        """
        name = os.path.basename(path)  # noqa: PTH119  paths as the kernel has them, which may be no files any more
        same = [known for known in self._files if os.path.basename(known) == name]  # noqa: PTH119
        noted = [pair for known in same if os.path.realpath(known) == path for pair in self._files[known]]
        return " and in ".join(dict.fromkeys(place for how, place in noted if None in (how, access) or how == access))

    def find_socket(self, fd: int) -> str:
        """Where the socket object that has this descriptor was made; empty if there is none."""
        sockets = [(reference(), place) for reference, place in self._sockets]
        places = [place for found, place in sockets if found is not None and found.fileno() == fd]
        return places[-1] if places else ""

    def find_program(self, arguments: list[str]) -> str:
        """Where a program was started with these arguments; empty if subprocess has not started it."""
        return self._programs.get(tuple(arguments), "")

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "sqlite3.connect"):
            if isinstance(args[0], str | bytes | os.PathLike) and (where := _find_place(sys._getframe(1))):
                path = os.path.abspath(os.fsdecode(args[0]))  # noqa: PTH100  no file need be there
                access = args[2] & os.O_ACCMODE if event == "open" else None
                self._files.setdefault(path, {})[access, where] = None
        elif event == "socket.__new__":
            self._sockets.append((weakref.ref(args[0]), _find_place(sys._getframe(1))))
        elif event == "subprocess.Popen" and not isinstance(args[1], str | bytes):
            self._programs[tuple(map(os.fsdecode, args[1]))] = _find_place(sys._getframe(1))


def _find_place(frame: FrameType | None) -> str:
    """The innermost frame outside the standard library, and its caller of the user's; empty for an import's files."""
    frames: list[Frame] = []
    while frame is not None and len(frames) < _MOST_FRAMES:
        code = frame.f_code
        if not frames and code.co_filename.startswith("<frozen importlib"):
            return ""
        if frames or not is_standard(code.co_filename):
            frames.append((code.co_filename, str(frame.f_lineno), code.co_name))
        frame = frame.f_back
    return locate(frames) if frames else ""
