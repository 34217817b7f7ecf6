"""What `prefork check` examines: an engine, or functions of the user's that load a model and infer with it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from prefork.engines import registry
from prefork.engines.base import LoadError
from prefork.wire.exceptions import describe_error


@dataclass(frozen=True, slots=True)
class Target:
    """What is examined: an engine with its options, or functions of the user's that load a model and infer with it.

    required: whether it counts that it cannot be loaded.
    """

    name: str
    engine: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    load: Reference | None = None
    infer: Reference | None = None
    required: bool = True


@dataclass(frozen=True, slots=True)
class Reference:
    """A function of the user's, by the name of its module, or by its file if that is not importable by name.

    path: where the user's process looks for modules.
    """

    module: str
    name: str
    file: str = ""
    path: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Reference:
        """From `package.module:function` or `folder/file.py:function`. Raises LoadError."""
        module, colon, name = text.rpartition(":")
        if not (colon and module and all(part.isidentifier() for part in name.split("."))):
            raise LoadError(f"{text!r} names no function; write package.module:function or file.py:function")
        path = (str(Path.cwd()), *sys.path)
        if module.endswith(".py"):
            return cls(Path(module).stem, name, str(Path(module).resolve()), path)
        return cls(module, name, "", path)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Reference:
        """Of a function that can be found by its name in its module. Raises LoadError."""
        name, file = function.__qualname__, getattr(sys.modules.get(function.__module__), "__file__", None)
        if "<" in name:
            raise LoadError(f"{name} cannot be found by another process; use a top-level function of a module")
        return cls(function.__module__, name, file or "", tuple(sys.path))

    def resolve(self) -> Callable[..., Any]:
        """The function. Raises LoadError."""
        sys.path[:] = [*sys.path, *(entry for entry in self.path if entry not in sys.path)]
        where = self.module if not self.file else f"{self.module} ({self.file})"
        try:
            found: Any = self._import()
        except SystemExit as error:
            raise LoadError(
                f"{where} cannot be imported: {describe_error(error, 'it')}; "
                'put what it runs as a script under `if __name__ == "__main__":`'
            ) from error
        except Exception as error:
            raise LoadError(
                f"{where} cannot be imported: {describe_error(error, 'it')}; "
                "start prefork where Python can import it, or set PYTHONPATH"
            ) from error
        for part in self.name.split("."):
            if not hasattr(found, part):
                raise LoadError(f"{where} has no function {self.name}; check its name")
            found = getattr(found, part)
        if not callable(found):
            raise LoadError(f"{self.module}:{self.name} is not a function but of type {type(found).__name__}")
        return found  # type: ignore[no-any-return]

    def _import(self) -> ModuleType:
        """By its file, unless that is what its name leads to."""
        if not self.file:
            return importlib.import_module(self.module)
        try:
            spec = importlib.util.find_spec(self.module)
        except (ImportError, ValueError):  # a parent package is not there, or it is __main__
            spec = None
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == Path(self.file).resolve():
            return importlib.import_module(self.module)
        name = f"{Path(self.file).stem}_{zlib.crc32(self.file.encode(errors='surrogateescape')):08x}"
        if name in sys.modules:  # another function of the same file has been asked for before
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, self.file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{self.file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module


def find_targets(engines: Sequence[str], options: Mapping[str, Any]) -> list[Target]:
    """The engines that are asked for; by default all that are installed and have a model of their own on this machine,
    each once. Raises LoadError."""
    if engines:
        for name in engines:
            registry.find(name)
        return [Target(name, name, options) for name in dict.fromkeys(engines)]
    once = {value: name for name, value in reversed(registry.list_models(registry.list_with_models()).items())}
    return [Target(name, name, options, required=False) for name in sorted(once.values())]


def call(reference: Reference) -> Any:
    """Loads a user's model. Raises LoadError if it returns nothing."""
    with one_process():
        model = reference.resolve()()
    if model is None:
        raise LoadError(f"{reference.module}:{reference.name} returned nothing; it must return the model")
    return model


@contextmanager
def one_process() -> Iterator[None]:
    """A process that is forked in this block and comes out of it ends there: only who went in goes on."""
    own = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != own:
            os._exit(0)
