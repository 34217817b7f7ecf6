"""Engines and services by name, and what they declare: this package's own and those that other packages bring (entry
points `prefork.engines`, `prefork.services` and `prefork.declarations`). What one of them brings that is broken costs
nobody else."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

from prefork.engines.base import Engine
from prefork.engines.declaration import Declaration, Role
from prefork.engines.errors import LoadError
from prefork.platform_matrix.imports import explain_import, find_reason
from prefork.platform_matrix.versions import describe_distribution, normalise

GROUP = "prefork.engines"
SERVICES = "prefork.services"
DECLARATIONS = "prefork.declarations"
_OWN = "prefork"
_HEAVY = "torch"  # no declaration imports it
# Of `Engine.memory_stage`: those with checkpoints that other tools know, and those that are no engine's.
_KNOWN_STAGES = ("transcription", "diarization", "speaker_alignment")
_COMMON_STAGES = ("pipeline", "audio_preprocessing")


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry point. owner: the package that brings it, and its version; empty where it does not say them."""

    point: EntryPoint
    owner: tuple[str, str]

    @property
    def name(self) -> str:
        return self.point.name


def names() -> list[str]:
    """The engines that are installed. Imports none of them."""
    return sorted({entry.name for entry in _read(GROUP)[0]})


def create(name: str, options: Mapping[str, Any]) -> Engine:
    """An engine with its options. Raises LoadError if there is none of that name, or it refuses an option."""
    found = _choose(name, GROUP)
    kind = _import(found)
    if not (isinstance(kind, type) and issubclass(kind, Engine)):
        value = found.point.value
        raise LoadError(f"engine {name}: {value} is not a prefork.engines.base.Engine; fix its entry point")
    _check_memory_stage(name, kind.memory_stage)
    engine: Engine = _call(name, kind, options)
    return engine


def create_service(name: str, options: Mapping[str, Any]) -> Any:
    """A service with its options: what does an engine's work elsewhere. Raises LoadError as `create` does."""
    return _call(name, _import(_choose(name, SERVICES)), options)


def is_service(name: str) -> bool:
    """Whether what is called so is a service, and no engine."""
    return any(entry.name == name for entry in _read(SERVICES)[0])


def declare(name: str) -> Declaration:
    """What an engine or a service declares, without importing it. One that declares nothing, or is not there, has a
    model of its own and serves no command. Raises LoadError if its declaration cannot be used."""
    try:
        owner = _choose_any(name).owner
    except LoadError:
        return Declaration()
    found = [entry for entry in _read(DECLARATIONS)[0] if entry.name == name and entry.owner == owner]
    return _import_declaration(found[0]) if found else Declaration()


def find_family(name: str) -> str:
    """The family whose model an engine uses; empty if it uses none. Raises LoadError if its declaration cannot be
    used."""
    family = declare(name).family
    return name if family is None else family


def list_with_models() -> list[str]:
    """Of each family of engines the one called so, else the first. What cannot be used is a family of its own."""
    found: dict[str, str] = {}
    for name in names():
        family = _try_declare(name).family
        family = name if family is None else family
        if family and (family not in found or name == family):
            found[family] = name
    return sorted(found.values())


def list_obstacles(engines: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Engines that cannot compute on a GPU, each with the reason. engines: with their options. Raises LoadError."""
    return tuple(
        (name, obstacle.reason)
        for name, options in engines.items()
        for obstacle in declare(name).obstacles
        if obstacle.applies(options)
    )


def match(name: str, roles: Sequence[Role]) -> str:
    """The engine or service that a name means where one with one of these roles is wanted: the one called so, else that
    of its package whose family is called so; empty if there is none. Raises LoadError if nothing is called so, or it
    cannot be used."""
    known = [entry.name for entry in _list_all()]
    if name not in known:
        raise LoadError(f"no engine named {name!r}; {_suggest(name, known, _read(GROUP)[1])}")
    own = _choose_any(name)
    if set(roles) & set(declare(name).roles):
        return name
    family = [entry.name for entry in _list_all() if entry.name != name and entry.owner == own.owner]
    declared = {one: declare(one) for one in family}
    found = [one for one, its in declared.items() if its.family == name and set(roles) & set(its.roles)]
    return found[0] if found else ""


def list_choices(roles: Sequence[Role]) -> list[str]:
    """Names by which `match` finds the engines with one of these roles, those of each role together; prefork's own
    before others, services last. What cannot be used is left out."""
    ranked = sorted(_list_all(), key=lambda e: (e.owner[0] != _OWN, e.point.group == SERVICES, e.name))
    declared = {entry.name: _try_declare(entry.name) for entry in ranked}
    found: dict[str, None] = {}
    for role in roles:
        for name, declaration in declared.items():
            if role in declaration.roles:
                family = declaration.family
                known = bool(family) and family in declared and match(family or "", (role,)) == name
                found[(family or "") if known else name] = None
    return list(found)


def find(name: str) -> EntryPoint:
    """The entry point of an engine. Raises LoadError if there is none of that name, or several packages have one."""
    return _choose(name, GROUP).point


def find_distribution(name: str) -> Distribution | None:
    """The package that brings an engine or a service; None if that cannot be known. Raises LoadError as `find` does."""
    return _choose(name, SERVICES if is_service(name) else GROUP).point.dist


def list_models(engines: list[str]) -> dict[str, str]:
    """What each of the engines is imported from; of those that several packages have, the first one's."""
    entries = {entry.name: entry.point.value for entry in reversed(_read(GROUP)[0])}
    return {name: entries[name] for name in engines}


def list_problems() -> list[str]:
    """What cannot be used of what other packages bring, a line each."""
    problems = list(_read(GROUP)[1])
    for name in names():
        try:
            find(name)
            declare(name)
        except LoadError as error:
            problems.append(str(error))
    return problems


def _choose(name: str, group: str) -> _Entry:
    """prefork's own name is nobody else's."""
    entries, problems = _read(group)
    found = [entry for entry in entries if entry.name == name]
    if not found:
        known = sorted({entry.name for entry in entries})
        listed = f"; there are {', '.join(known) or 'none'}"
        raise LoadError(f"no engine named {name!r}{listed}; {_suggest(name, known, problems)}")
    own = [entry for entry in found if entry.owner[0] == _OWN]
    if len(found) > 1 and not own:
        owners = " and ".join(" ".join(filter(None, entry.owner)) or "another package" for entry in found)
        raise LoadError(f"engine {name} is provided by {owners}; uninstall all but one of them")
    return (own or found)[0]


def _suggest(name: str, known: Sequence[str], problems: Sequence[str]) -> str:
    """What to do about a name that nothing has."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "install the package that provides it"
    return "; ".join((hint, *problems))


def _choose_any(name: str) -> _Entry:
    """An engine or a service."""
    return _choose(name, SERVICES if is_service(name) else GROUP)


def _list_all() -> tuple[_Entry, ...]:
    """Engines, then services."""
    return (*_read(GROUP)[0], *_read(SERVICES)[0])


def _read(group: str) -> tuple[tuple[_Entry, ...], tuple[str, ...]]:
    """The entry points of all packages, of each that is there several times those of the first, as Python imports it;
    and what cannot be read, a line each."""
    return _scan(group, tuple(sys.path))


@cache
def _scan(group: str, path: tuple[str, ...]) -> tuple[tuple[_Entry, ...], tuple[str, ...]]:
    """path: where packages are. Read once: that is a file of every package."""
    entries: list[_Entry] = []
    problems: list[str] = []
    seen: set[str] = set()
    for distribution in distributions(path=list(path)):
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, UnicodeDecodeError) as error:
            problems.append(_describe_problem(distribution, error))
            continue
        if group not in text:
            continue
        owner = describe_distribution(distribution)
        name = normalise(owner[0])
        if name and name in seen:
            continue
        seen.add(name)
        try:
            entries += [_Entry(point, owner) for point in distribution.entry_points.select(group=group)]
        except (TypeError, ValueError) as error:  # of a line that names nothing, importlib.metadata says no more
            problems.append(_describe_problem(distribution, error))
    return tuple(entries), tuple(problems)


def _describe_problem(distribution: Distribution, error: Exception) -> str:
    owner = " ".join(filter(None, describe_distribution(distribution))) or "a package"
    return f"the entry points of {owner} cannot be read ({find_reason(error)}); reinstall or uninstall it"


def _import_declaration(found: _Entry) -> Declaration:
    light = _HEAVY not in sys.modules
    declaration = _import(found, "its declaration ")
    name, value = found.name, found.point.value
    if not isinstance(declaration, Declaration):
        raise LoadError(f"engine {name}: {value} is not a prefork.engines.base.Declaration; fix its entry point")
    if light and _HEAVY in sys.modules:
        raise LoadError(
            f"engine {name}: its declaration {value} imports {_HEAVY}, which commands do without; move the "
            "declaration to a module that imports nothing but prefork.engines.base"
        )
    return declaration


def _try_declare(name: str) -> Declaration:
    """What it declares; nothing if that cannot be used."""
    try:
        return declare(name)
    except LoadError:
        return Declaration()


def _check_memory_stage(name: str, stage: Any) -> None:
    """Raises LoadError if no engine's work can be called so among the memory checkpoints."""
    if stage == "" or (
        isinstance(stage, str) and re.fullmatch("[a-z][a-z0-9_]*", stage) and stage not in _COMMON_STAGES
    ):
        return
    raise LoadError(
        f"engine {name}: memory_stage must be {', '.join(_KNOWN_STAGES)}, or a name of its own in lower case letters, "
        f"digits and _, other than {' and '.join(_COMMON_STAGES)}, not {stage!r}"
    )


def _import(found: _Entry, part: str = "") -> Any:
    """part: of the engine, what it is."""
    point = found.point
    try:
        return point.load()
    except KeyboardInterrupt:
        raise
    except LoadError as error:
        raise LoadError(f"engine {point.name}: {error}") from error
    except BaseException as error:
        reason = explain_import(error) or f"{_describe(error)}; fix it, or uninstall {_name_owner(found)}"
        what = f"engine {point.name}: {part}" if part else f"engine {point.name} "
        raise LoadError(f"{what}cannot be imported from {point.value}: {reason}") from error


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it calls sys.exit"
    return find_reason(error)


def _name_owner(found: _Entry) -> str:
    return found.owner[0] or "the package that provides it"


def _call(name: str, kind: Any, options: Mapping[str, Any]) -> Any:
    try:
        return kind(**options)
    except TypeError as error:
        raise LoadError(f"engine {name} does not take these options: {error}") from error
