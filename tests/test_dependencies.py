"""What prefork needs: the lock has all of it and is true to pyproject.toml, and CI installs nothing else."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distribution, requires
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ROOT / ".ci" / "versions.py"
PYTHONS = ["3.11", "3.12", "3.13"]
SYSTEMS = [
    ("linux", "Linux", "posix", "x86_64"),
    ("linux", "Linux", "posix", "aarch64"),
    ("darwin", "Darwin", "posix", "arm64"),
    ("win32", "Windows", "nt", "AMD64"),
]
ENVIRONMENTS = [
    {
        **{key: str(value) for key, value in default_environment().items()},
        "extra": "",
        "sys_platform": system,
        "platform_system": name,
        "os_name": os_name,
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.1",
        "implementation_version": f"{python}.1",
    }
    for system, name, os_name, machine in SYSTEMS
    for python in PYTHONS
]


def _load_versions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_versions", VERSIONS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


versions = _load_versions()
LOCK = (ROOT / "requirements.lock").read_text()
PINS = versions.read_lock(LOCK)


@cache
def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _locked(environment: Mapping[str, str]) -> dict[str, str]:
    return {pin.name: pin.version for pin in PINS if pin.is_for(environment)}


REQUIREMENTS: list[Requirement] = versions.read_requirements(_pyproject()["project"])


def test_python_versions_are_those_that_are_tried() -> None:
    assert _pyproject()["project"]["requires-python"] == ">=3.11,<3.14"
    told = [line.rpartition(" ")[2] for line in _pyproject()["project"]["classifiers"] if "Python :: 3." in line]
    assert told == PYTHONS
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "fork-safety.yml").read_text())
    assert workflow["jobs"]["linux"]["strategy"]["matrix"]["python"] == PYTHONS


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_range_has_both_ends_and_the_lock_is_within_it_everywhere(requirement: Requirement) -> None:
    operators = {each.operator for each in requirement.specifier}
    assert operators in ({">=", "<"}, {">=", "<="}, {"=="}), "a version that nobody has tried may be taken"
    for environment in ENVIRONMENTS:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            version = _locked(environment).get(canonicalize_name(requirement.name))
            assert version is not None, "requirements.lock lacks it; renew it with .ci/lock"
            assert requirement.specifier.contains(version), f"{version} is locked; renew the lock with .ci/lock"


def test_the_lock_names_each_package_once_for_an_environment() -> None:
    for environment in ENVIRONMENTS:
        names = [pin.name for pin in PINS if pin.is_for(environment)]
        assert len(names) == len(set(names))


def test_the_lock_holds_no_index_no_path_no_hash_and_no_local_version() -> None:
    for line in LOCK.splitlines():
        if not line.startswith("#"):
            assert re.match(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [^#/+@\\]+)?\s*(# via .*)?$", line), line
            assert not re.search(r"[/\\@+]|--|sha256|https?:", line), line


def test_the_lock_says_how_it_is_renewed() -> None:
    assert re.search(r"^# .*\.ci/lock\b", LOCK, re.M)
    subprocess.run(["bash", "-n", ROOT / ".ci" / "lock"], check=True)
    assert (ROOT / ".ci" / "lock").stat().st_mode & 0o100


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("torch>=2.11", "not an exact version"),
        ("torch @ https://example.org/torch.whl", "not enough values"),
        ("-e .", "Expected package name"),
    ],
)
def test_a_line_that_is_no_exact_version_is_refused(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        versions.read_lock(line)


def _is_as_locked() -> bool:
    here = subprocess.run([sys.executable, VERSIONS, "difference"], check=False, capture_output=True)
    return here.returncode == 0


def test_the_lock_holds_whatever_an_installed_package_needs() -> None:
    if not _is_as_locked():
        pytest.skip("other versions than the lock's are installed, which may need other packages")
    here = {key: str(value) for key, value in default_environment().items()}
    locked = _locked(here)
    seen: set[tuple[str, str]] = set()
    left = [("prefork", extra) for extra in ("", "test", "plot", "diarize", "rev")]
    while left:
        name, extra = left.pop()
        for line in requires(name) or ():
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate({**here, "extra": extra}):
                continue
            needed = canonicalize_name(wanted.name)
            assert needed in locked or needed == "prefork", f"{name} needs {line}, which requirements.lock lacks"
            asked = [(needed, each) for each in ("", *wanted.extras) if (needed, each) not in seen]
            seen.update(asked)
            left += asked
    assert len(seen) > 100


def test_what_builds_is_named_exactly_and_is_what_the_lock_says() -> None:
    pins = {pin.name: pin.version for pin in versions.read_lock("\n".join(_pyproject()["build-system"]["requires"]))}
    for environment in ENVIRONMENTS:
        assert pins.items() <= _locked(environment).items(), "renew the lock with .ci/lock, which writes them there"


def test_what_builds_needs_nothing_that_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from hatchling import build

    monkeypatch.chdir(ROOT)
    pins = {pin.name: pin.version for pin in versions.read_lock("\n".join(_pyproject()["build-system"]["requires"]))}
    if distribution("hatchling").version != pins["hatchling"]:
        pytest.skip("another hatchling than the one that builds is installed")
    asked = [*build.get_requires_for_build_editable(), *build.get_requires_for_build_wheel()]
    for name in ("hatchling", *pins):
        asked += requires(name) or ()
    for line in asked:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), line


def test_whatever_ci_installs_and_builds_comes_from_the_lock() -> None:
    """What builds a package that comes as source, such as docopt, is held to constraints in the environment alone."""
    readme = (ROOT / "README.md").read_text()
    first = re.findall(r"^```bash\n(.*?)^```", readme, re.M | re.S)[0]
    names = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")  # up to pip 26.1; from pip 25.3
    assert f"{' '.join(f'{name}=requirements.lock' for name in names)} .venv/bin/pip install " in first
    assert first.count("pip install") == 1
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "fork-safety.yml").read_text())
    assert workflow["env"].items() >= dict.fromkeys(names, "requirements.lock").items()
    for environment in ENVIRONMENTS:
        assert {"setuptools", "wheel"} <= _locked(environment).keys()


@pytest.mark.parametrize("kind", ["DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"])
@pytest.mark.parametrize(
    "ours", ["prefork", "prefork.engines.audio.reader", "prefork.platform_matrix.facts", "tests.limits"]
)
def test_a_call_of_our_own_that_a_package_will_drop_is_an_error(ours: str, kind: str) -> None:
    with pytest.raises(Warning, match="will go"):
        exec(f"import warnings; warnings.warn('will go', {kind})", {"__name__": ours})


@pytest.mark.parametrize("theirs", ["torch", "transformers.tests", "preforked", "__main__"])
def test_a_call_of_a_package_that_another_will_drop_is_not(theirs: str) -> None:
    exec("import warnings; warnings.warn('will go', DeprecationWarning)", {"__name__": theirs})


# -- .ci/versions.py


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_without_its_upper_end_a_range_takes_what_comes_next_and_all_it_took(requirement: Requirement) -> None:
    opened = versions.drop_upper_end(requirement)
    assert opened.name == requirement.name
    assert opened.specifier.contains("9999")
    for pin in PINS:
        if pin.name == canonicalize_name(requirement.name):
            assert opened.specifier.contains(pin.version)


_VERSIONS = st.lists(st.integers(0, 30), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))


@given(lower=_VERSIONS, upper=_VERSIONS, version=_VERSIONS, end=st.sampled_from(["<", "<=", "!="]))
def test_only_the_upper_end_is_dropped(lower: str, upper: str, version: str, end: str) -> None:
    opened = versions.drop_upper_end(Requirement(f"some.package[extra]>={lower},{end}{upper}; python_version > '3'"))
    assert opened.specifier.contains(version) == (Version(version) >= Version(lower))
    assert (opened.extras, str(opened.marker)) == ({"extra"}, 'python_version > "3"')


def test_differences_are_what_is_newer_older_or_unknown_to_the_lock() -> None:
    pins = versions.read_lock("av==18.1.0 ; python_full_version < '3.12'\nnumpy==2.4.6\ntorch==2.14.1\nwheel==1.0")
    installed = {"av": "18.1.0", "numpy": "2.5.5", "torch": "2.14.1+cpu", "newcomer": "0.1"}
    assert versions.find_differences(pins, installed) == [("newcomer", "-", "0.1"), ("numpy", "2.4.6", "2.5.5")]


def test_a_difference_is_annotated_on_github_and_stands_in_the_summary(tmp_path: Path) -> None:
    (tmp_path / "unheard_of-1.0.dist-info").mkdir()
    (tmp_path / "unheard_of-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: unheard-of\nVersion: 1.0\n"
    )
    summary = tmp_path / "summary.md"
    environment = {"PYTHONPATH": str(tmp_path), "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    run = subprocess.run(
        [sys.executable, VERSIONS, "difference"], check=False, capture_output=True, text=True, env=environment
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert "| unheard-of | - | 1.0 |" in run.stdout.splitlines()
    [annotation] = [line for line in run.stdout.splitlines() if line.startswith("::error")]
    assert re.match(r"::error title=other versions than requirements\.lock::.*\bunheard-of - -> 1\.0", annotation)
    assert "| unheard-of | - | 1.0 |" in summary.read_text().splitlines()


@pytest.mark.parametrize("arguments", [[], ["differences"], ["difference", "now"]])
def test_what_is_neither_of_its_two_words_is_refused(arguments: list[str]) -> None:
    run = subprocess.run([sys.executable, VERSIONS, *arguments], check=False, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.endswith(": say difference or open-ended\n")
    assert run.stderr.count("\n") == 1
