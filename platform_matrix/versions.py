"""What is installed, from the packages' metadata alone, and what of it does not go together. Imports none of it.

The pairs of torch and torchaudio that were tried are data; `find_conflict` is a pure decision. A pair that nobody has
tried is not refused, nor is what cannot be read: metadata may be missing (a bare checkout on PYTHONPATH), without a
version, or of another copy than the one that would be imported.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from email.parser import HeaderParser
from importlib.metadata import Distribution, distributions
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Trial:
    """A pair of releases that was tried. problem: what the loader said; empty if it aligned the samples. day: of the
    trial. A release stands for every build of it: 2.11.0 is 2.11.0+cu130 and 2.11.0+cpu too."""

    torch: str
    torchaudio: str
    problem: str
    day: str


_DAY = "2026-11-28"
_SYMBOL = "libtorchaudio.so: undefined symbol: torch_exception_get_what_without_backtrace"
# Linux, builds for CUDA 13 run on the CPU, Python 3.11: the samples came out the same, byte for byte, with every pair
# that loads. The newest that pyproject.toml allows comes last.
TRIALS = (
    Trial("2.11.0", "2.11.1", _SYMBOL, _DAY),
    Trial("2.12.0", "2.11.1", _SYMBOL, _DAY),
    Trial("2.12.1", "2.11.1", _SYMBOL, _DAY),
    Trial("2.15.0", "2.11.0", "torch is built for CUDA 13.2, and this torchaudio for 13.0", _DAY),
    Trial("2.15.0", "2.11.1", "", _DAY),
    Trial("2.13.0", "2.11.1", "", _DAY),
    Trial("2.14.0", "2.11.1", "", _DAY),
    Trial("2.14.1", "2.11.1", "", _DAY),
    Trial("2.11.0", "2.11.0", "", _DAY),
    Trial("2.12.0", "2.11.0", "", _DAY),
    Trial("2.12.1", "2.11.0", "", _DAY),
    Trial("2.13.0", "2.11.0", "", _DAY),
    Trial("2.14.0", "2.11.0", "", _DAY),
    Trial("2.14.1", "2.11.0", "", _DAY),
)
PAIRED = ("torch", "torchaudio")
_MODULES = {"pyyaml": "yaml", "pyannote-audio": "pyannote.audio"}  # where the module is not called as its package is
# The local versions of torch's builds are the names of the folders that they are in.
_BUILDS = re.compile(r"cpu|cu\d+|rocm[\d.]+|xpu")
_INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True, slots=True)
class Package:
    """One that prefork needs. version: empty if it is not known. present: whether there is one at all. wanted: the
    versions that prefork declares, as pip writes them; empty for any. extra: of prefork, which needs it. copies: the
    versions that lie in one folder, if there are several. place: that folder."""

    name: str
    version: str = ""
    present: bool = True
    wanted: str = ""
    extra: str = ""
    copies: tuple[str, ...] = ()
    place: str = ""

    @property
    def requirement(self) -> str:
        """For a shell."""
        return f'"{self.name}{self.wanted}"' if self.wanted else self.name


@dataclass(frozen=True, slots=True)
class Versions:
    """prefork: empty if it is not installed, but on the path as it is."""

    prefork: str
    python: str
    packages: tuple[Package, ...]

    def find(self, name: str) -> Package | None:
        return next((package for package in self.packages if package.name == name), None)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Packages that cannot be used as they are. found: what is there; reason: why it does not work; remedy: what to
    type."""

    found: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.found}: {self.reason}; type: {self.remedy}"


def normalise(name: str) -> str:
    """A package's name as it is compared.

    >>> normalise("Huggingface_Hub")
    'huggingface-hub'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def find_module(name: str) -> str:
    """What a package is imported as."""
    return _MODULES.get(name, name.replace("-", "_"))


def is_in(module: str, package: str) -> bool:
    """Whether a module is this one or below it."""
    return module == package or module.startswith(f"{package}.")


# -- the decision ----------------------------------------------------------------------------------------------------


def find_conflict(versions: Versions, needed: Collection[str]) -> Conflict | None:
    """Why the packages that are needed cannot be imported as they are, or are none that prefork works with; None if
    nothing is known against them."""
    packages = [package for package in versions.packages if package.name in needed]
    for package in packages:
        if package.copies:
            return _describe_copies(versions, package)
    if missing := [package for package in packages if not package.present]:
        return _describe_missing(versions, missing)
    if set(PAIRED) <= set(needed) and (conflict := _find_pair_conflict(versions)):
        return conflict
    return _find_range_conflict(versions, packages)


def choose_pair(versions: Versions, keep: Iterable[str] = PAIRED) -> Trial:
    """The pair to install: one that works and has what is there already, of torch if possible, because that is the
    larger; else the newest that was tried. keep: those of the two that may stay as they are."""
    working = [trial for trial in reversed(TRIALS) if not trial.problem]
    for name in PAIRED:
        package = versions.find(name)
        if name in keep and package is not None:
            for trial in working:
                if getattr(trial, name) == _strip_build(package.version):
                    return trial
    return working[0]


def describe_pair(versions: Versions, keep: Iterable[str] = PAIRED) -> str:
    """The command that installs it, in the build that is there."""
    trial = choose_pair(versions, keep)
    torch = versions.find("torch")
    build = torch.version.partition("+")[2] if torch is not None else ""
    index = f" --index-url {_INDEX}/{build}" if _BUILDS.fullmatch(build) else ""
    return f"pip install torch=={trial.torch} torchaudio=={trial.torchaudio}{index}"


def _strip_build(version: str) -> str:
    """
    >>> _strip_build("2.11.0+cu130"), _strip_build("2.11.0a0+git1234567")
    ('2.11.0', '2.11.0a0')
    """
    return version.partition("+")[0]


def _find_pair_conflict(versions: Versions) -> Conflict | None:
    pair = tuple(package.version if (package := versions.find(name)) else "" for name in PAIRED)
    for trial in TRIALS:
        if trial.problem and (trial.torch, trial.torchaudio) == tuple(map(_strip_build, pair)):
            found = f"torch {pair[0]} and torchaudio {pair[1]} do not go together"
            return Conflict(found, trial.problem, describe_pair(versions))
    return None


def _find_range_conflict(versions: Versions, packages: Sequence[Package]) -> Conflict | None:
    """Of torch and torchaudio the pair decides: their ranges leave out what nobody has tried."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    def is_unfit(package: Package) -> bool:
        try:
            return not SpecifierSet(package.wanted).contains(Version(package.version), prereleases=True)
        except (InvalidSpecifier, InvalidVersion):  # then nothing is known of it
            return False

    unfit = [p for p in packages if p.version and p.wanted and p.name not in PAIRED and is_unfit(p)]
    if not unfit:
        return None
    found = _join([f"{package.name} {package.version}" for package in unfit])
    wanted = _join([f"{package.name}{package.wanted}" for package in unfit])
    remedy = f"pip install {' '.join(package.requirement for package in unfit)}"
    return Conflict(f"{found} {_be(unfit)} installed", f"prefork {versions.prefork} needs {wanted}", remedy)


def _describe_missing(versions: Versions, missing: Sequence[Package]) -> Conflict:
    remedies = [package.requirement for package in missing if package.name not in PAIRED]
    lost = [package.name for package in missing if package.name in PAIRED]
    pair = describe_pair(versions, [name for name in PAIRED if name not in lost]) if lost else ""
    typed = [*([pair] if pair else []), *([f"pip install {' '.join(remedies)}"] if remedies else [])]
    found = f"{_join([package.name for package in missing])} {_be(missing)} not installed"
    wanted = _join([f"{package.name}{package.wanted}" for package in missing])
    return Conflict(found, f"prefork needs {wanted}", " && ".join(typed))


def _describe_copies(versions: Versions, package: Package) -> Conflict:
    others = [name for name in PAIRED if name != package.name]
    install = describe_pair(versions, others) if package.name in PAIRED else f"pip install {package.requirement}"
    remove = " && ".join([f"pip uninstall -y {package.name}"] * len(package.copies))
    found = f"{package.name} lies {len(package.copies)} times in {package.place} ({', '.join(package.copies)})"
    return Conflict(found, "its files are a mixture of them", f"{remove} && {install}")


def _be(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def _join(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


# -- reading ---------------------------------------------------------------------------------------------------------


def read_versions() -> Versions:
    """Of the packages that prefork declares, and of torch and torchaudio. Takes milliseconds, and never raises."""
    own = read_distribution("prefork")
    declared = read_requirements(own) if own is not None else []
    known = {package.name for package in declared}
    packages = [*declared, *(Package(name) for name in PAIRED if name not in known)]
    prefork = _read_version(own) if own is not None else ""
    return Versions(prefork, platform.python_version(), tuple(map(_look_up, sorted(packages, key=lambda p: p.name))))


def read_distribution(name: str, file: str = "") -> Distribution | None:
    """The one whose files would be imported. file: one of them; by default where its module would be found.

    Of several on the path the first one counts, as for Python, but only if the module is beside it, or it says of
    itself that it was installed from somewhere else.
    """
    found = list(distributions(name=name))
    place = str(Path(file)) if file else _find_place(find_module(normalise(name)))
    for distribution in found:
        home = _find_home(distribution)
        if not place or place == home or (file and os.path.realpath(place).startswith(f"{home}{os.sep}")):
            return distribution
    return next((distribution for distribution in found if _is_editable(distribution)), None)


def find_version(name: str) -> str:
    """The release of a package, whatever build of it is installed; empty if it is not, or not known."""
    return _strip_build(_look_up(Package(normalise(name))).version)


def describe_distribution(distribution: Distribution) -> tuple[str, str]:
    """Name and version; empty where it does not say them."""
    headers = _read_headers(distribution)
    return headers.get("Name", ""), headers.get("Version", "")


def _look_up(package: Package) -> Package:
    """What is there of it."""
    place = _find_place(find_module(package.name))
    found = list(distributions(name=package.name))
    distribution = read_distribution(package.name)
    home = _find_home(distribution) if distribution is not None else ""
    copies = {_read_version(other) for other in found if home and _find_home(other) == home}
    version = _read_version(distribution) if distribution is not None else _read_own_version(package.name, place)
    return replace(
        package,
        version=version,
        present=bool(found or place),
        copies=tuple(sorted(copies)) if len(copies - {""}) > 1 else (),
        place=home,
    )


def _find_place(module: str) -> str:
    """The folder of the packages among which it would be imported from; empty if it would not be found."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # something in sys.modules that was never imported
        return ""
    if spec is None:
        return ""
    file = next(iter(spec.submodule_search_locations or ()), spec.origin or "")
    return os.path.realpath(Path(file).parents[module.count(".")]) if file else ""


def _find_home(distribution: Distribution) -> str:
    """The folder that its files are in."""
    return os.path.realpath(str(distribution.locate_file("")))


def _is_editable(distribution: Distribution) -> bool:
    try:
        return '"editable"' in (distribution.read_text("direct_url.json") or "")
    except (OSError, UnicodeDecodeError):
        return False


def _read_version(distribution: Distribution) -> str:
    return describe_distribution(distribution)[1]


def _read_headers(distribution: Distribution) -> dict[str, str]:
    """Of its metadata; the description that follows them, often a whole README, is not parsed."""
    return dict(HeaderParser().parsestr(_read_head(distribution)).items())


def _read_head(distribution: Distribution) -> str:
    for name in ("METADATA", "PKG-INFO"):
        try:
            text = distribution.read_text(name)
        except (OSError, UnicodeDecodeError):  # then it says nothing
            continue
        if text:
            return re.split(r"\r?\n\r?\n", text, maxsplit=1)[0] + "\n"
    return ""


def _read_own_version(name: str, place: str) -> str:
    """What torch and torchaudio are called by their own file, where their metadata is of another copy, or missing."""
    if name not in PAIRED or not place:
        return ""
    try:
        text = (Path(place) / name / "version.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"""__version__\s*(?::\s*str\s*)?=\s*['"](.+?)['"]""", text)
    return found[1] if found else ""


def find_requirement(name: str) -> str:
    """What to type behind `pip install` for one of the packages that prefork or an extra of it needs."""
    package = read_versions().find(name)
    return package.requirement if package is not None else name


def read_requirements(distribution: Distribution) -> list[Package]:
    """What it declares for this Python and system, each once; those of an extra with its name."""
    found: dict[str, Package] = {}
    for text in HeaderParser().parsestr(_read_head(distribution)).get_all("Requires-Dist") or ():
        requirement, _, marker = text.partition(";")
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^()@]*)\)?\s*$", requirement)
        if match is None:  # by an address: nothing to compare
            continue
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
        if marker and not _applies(marker, extra[1] if extra else ""):
            continue
        package = Package(normalise(match[1]), wanted=match[2].replace(" ", ""), extra=extra[1] if extra else "")
        if package.name not in found or not package.extra:  # what is needed anyway is no extra's
            found[package.name] = package
    return list(found.values())


def _applies(marker: str, extra: str) -> bool:
    if re.fullmatch(r"\s*extra\s*==\s*\S+\s*", marker):  # most are, and packaging takes its time to be imported
        return True
    from packaging.markers import InvalidMarker, Marker

    try:
        return Marker(marker).evaluate({"extra": extra})
    except InvalidMarker:
        return False
