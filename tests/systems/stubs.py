"""What of Python's library a system has, as typeshed says it: mypy brings its stubs along."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path


def find_missing(module: str, system: str, kind: str = "") -> frozenset[str]:
    """The names that a module, or a class of it, has on Linux and not on the system, which is called as sys.platform
    does."""
    return list_names(module, "linux", kind) - list_names(module, system, kind)


@cache
def list_names(module: str, system: str, kind: str = "") -> frozenset[str]:
    """Those that a module, or a class of it, has on a system."""
    return frozenset(_list_names(_enter(_parse(module).body, kind, system), system))


@cache
def _parse(module: str) -> ast.Module:
    folder = _find_stubs()
    places = (folder / f"{module}.pyi", folder / module / "__init__.pyi")
    return ast.parse(next(place for place in places if place.is_file()).read_text(encoding="utf-8"))


def _find_stubs() -> Path:
    import mypy

    return Path(mypy.__file__).parent / "typeshed" / "stdlib"


def _enter(body: list[ast.stmt], kind: str, system: str) -> list[ast.stmt]:
    if not kind:
        return body
    return next(
        node.body for node in _list_statements(body, system) if isinstance(node, ast.ClassDef) and node.name == kind
    )


def _list_statements(body: Iterable[ast.stmt], system: str) -> Iterator[ast.stmt]:
    """Those that hold on a system."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _list_statements(node.body if _holds(node.test, system) else node.orelse, system)
        else:
            yield node


def _list_names(body: Iterable[ast.stmt], system: str) -> Iterator[str]:
    for node in _list_statements(body, system):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.ImportFrom(module=module, names=names):
                for alias in names:
                    if alias.name != "*":
                        yield alias.asname or alias.name
                    elif module and not node.level:
                        yield from (name for name in _list_names(_parse(module).body, system) if name[0] != "_")


def _holds(test: ast.expr, system: str) -> bool:
    """A condition of typeshed's: the system, the version, or several of them."""
    known = {"sys": type("sys", (), {"platform": system, "version_info": sys.version_info}), "TYPE_CHECKING": True}
    return bool(eval(compile(ast.Expression(test), "<typeshed>", "eval"), {"__builtins__": {}}, known))
