"""Another system, as far as prefork can tell: in one process on Linux, prefork finds what that system has and no more.

Set PREFORK_TESTS_SYSTEM to `win32` or `darwin` in the environment of what prefork starts (the command, or a script that
imports prefork): the launcher of the tests has each such process, and all that they start, `become` that system. To
prefork's own modules, and to nobody else's, then

- a name of Python's library that typeshed says the system has not is missing: `os.fork`, `signal.SIGKILL`, `fcntl`;
- `sys.platform` and `os.name` are the system's;
- files that only Linux has are not there (/proc, /sys, /dev/shm), nor are functions of its C library (prctl).

What the system has and Linux has not is made of what Linux has: see `tests.systems.windows` and `tests.systems.macos`.
Libraries are left as they are: on such a system they would be that system's own.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tests.systems.stubs import find_missing

SYSTEM = "PREFORK_TESTS_SYSTEM"  # the variable: a value of sys.platform, or none
_MODULES = ("os", "signal", "socket", "select", "mmap", "sys", "subprocess", "time", "platform", "ctypes")
POSIX = ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
_CLASSES = (("socket", "_socket"), ("mmap", "mmap"))  # whose methods are looked at too, and which stub has them
LINUX_FILES = ("/proc", "/sys", "/dev/shm")
_OTHERS = {"win32": (*LINUX_FILES, "/dev/fd"), "darwin": LINUX_FILES}
_MAKERS = ("tests.systems", "tests.launcher", "tests.conftest")
_packages = {"prefork"}
_FILES = {"open", "os.listdir", "os.scandir"}  # events of sys.addaudithook, with a path first


def become(system: str, *packages: str) -> None:
    """From here on. What of prefork has been imported is imported again. packages: whose modules find the system too,
    beside prefork's."""
    _packages.update(packages)
    for name in [name for name in sys.modules if is_prefork(name)]:
        del sys.modules[name]
    absent = POSIX if system == "win32" else ()
    values: dict[str, dict[str, Any]] = {"sys": {"platform": system}}  # by module
    additions = importlib.import_module(f"tests.systems.{'windows' if system == 'win32' else 'macos'}")
    additions.add(values)
    changed = {
        name: _Module(importlib.import_module(name), find_missing(name, system), values.get(name, {}))
        for name in (_MODULES if absent else (*_MODULES, *POSIX))
    }
    for name, stub in _CLASSES:
        for method in find_missing(stub, system, name):
            _hide_method(getattr(sys.modules[name], name), method)
    _change_imports(absent, changed)
    _refuse_files(system)


def is_prefork(name: str) -> bool:
    """Whether a module finds the system."""
    return name.partition(".")[0] in _packages and not name.startswith(_MAKERS)


def is_asked_by_prefork(depth: int = 2) -> bool:
    """Whether the function that calls this one was called by a module of prefork's. depth: of the frame that is."""
    return is_prefork(sys._getframe(depth).f_globals.get("__name__", ""))


def is_meant_by_prefork(depth: int = 2) -> bool:
    """The same, of what Python's library does for a module of prefork's."""
    frame: types.FrameType | None = sys._getframe(depth)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] not in sys.stdlib_module_names:
            return is_prefork(name)
        frame = frame.f_back
    return False


def for_prefork(other: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """What is called in place of a function: `other` by prefork, `own` by everybody else."""

    def choose(*arguments: Any, **options: Any) -> Any:
        return (other if is_asked_by_prefork() else own)(*arguments, **options)

    return choose


class _Module(types.ModuleType):
    """A module of Python's library as prefork finds it: with these values in place of its own, without what is missing.
    What is set there is set in the module itself."""

    def __init__(self, module: types.ModuleType, missing: Collection[str], values: Mapping[str, Any]) -> None:
        super().__init__(module.__name__, module.__doc__)
        vars(self).update(_module=module, _missing=missing, _values=dict(values), _before={})

    def __getattr__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        if name in self._missing:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._before.setdefault(name, []).append(getattr(self, name, None))
        self._set(name, value)

    def __delattr__(self, name: str) -> None:
        """What was set last is taken back, as monkeypatch does it of names that a module's `__getattr__` has given."""
        self._set(name, self._before[name].pop())

    def _set(self, name: str, value: Any) -> None:
        if name in self._values:
            self._values[name] = value
        else:
            setattr(self._module, name, value)

    def __reduce__(self) -> Any:
        return importlib.import_module, (self.__name__,)


def _hide_method(kind: Any, name: str) -> None:
    own: Any = getattr(kind, name, None)
    if own is None:  # this Python has not been built with it
        return

    class Hidden:
        def __get__(self, thing: Any, owner: Any) -> Any:
            if is_asked_by_prefork():
                raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")
            return own if thing is None else own.__get__(thing, owner)

    setattr(kind, name, Hidden())


def _change_imports(absent: Collection[str], changed: Mapping[str, types.ModuleType]) -> None:
    own = builtins.__import__
    of_tests = _Module(sys, (), {"platform": changed["sys"].platform})  # they start the real Python

    def find(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        importer = globals.get("__name__", "") if globals is not None and level == 0 else ""
        theirs = is_prefork(importer)
        if theirs and name in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        found = own(name, globals, locals, fromlist, level)
        key = name if fromlist else name.partition(".")[0]
        if key == "sys" and theirs and importer.startswith("tests."):
            return of_tests
        return changed.get(key, found) if theirs else found

    builtins.__import__ = find


def _refuse_files(system: str) -> None:
    def look(event: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[0] if event in _FILES else None
        if isinstance(path, str | bytes | os.PathLike) and _is_other(os.fspath(path)) and is_meant_by_prefork():
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))

    def _is_other(path: str | bytes) -> bool:
        text = os.fsdecode(path)
        return text != os.devnull and any(text == other or text.startswith(f"{other}/") for other in _OTHERS[system])

    def hide(own: Callable[..., Any]) -> Callable[..., Any]:
        def ask(path: Any, *arguments: Any, **options: Any) -> Any:
            if not isinstance(path, int) and _is_other(os.fspath(path)) and is_meant_by_prefork():
                raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
            return own(path, *arguments, **options)

        for known in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
            if own in known:
                known.add(ask)
        return ask

    for name in ("stat", "lstat", "readlink"):  # of which no audit hook is told
        setattr(os, name, hide(getattr(os, name)))
    sys.addaudithook(look)
