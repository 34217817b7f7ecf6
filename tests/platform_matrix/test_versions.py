"""Versions: read from real folders by real processes; what does not go together is decided without any."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.platform_matrix.versions import (
    TRIALS,
    Package,
    Versions,
    choose_pair,
    find_conflict,
    find_module,
    normalise,
)

PAIR = ("torch", "torchaudio")
FAILED = next(trial for trial in TRIALS if trial.problem)
READ = """
import json, sys
from dataclasses import asdict
from prefork.platform_matrix.versions import read_versions
print(json.dumps(asdict(read_versions())), {'torch', 'numpy', 'packaging'} & set(sys.modules))
"""


def _make(torch: str | None, torchaudio: str | None, *others: Package) -> Versions:
    pair = [Package(n, v or "", v is not None) for n, v in zip(PAIR, (torch, torchaudio), strict=True)]
    return Versions("0.1.0", "3.12.1", (*others, *pair))


def _write(folder: Path, name: str, version: str | None, source: str = "") -> None:
    """A package with its metadata, by hand."""
    place = folder / f"{name}-{version or 'unknown'}.dist-info"
    place.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", *([f"Version: {version}"] if version else [])]
    (place / "METADATA").write_text("\n".join([*lines, "", "Version: 0.0 is what this README says"]))
    (folder / find_module(normalise(name))).mkdir(exist_ok=True)
    (folder / find_module(normalise(name)) / "__init__.py").write_text(source)


def _read(*folders: Path) -> dict[str, dict[str, Any]]:
    """By name, what a process finds that looks into these folders first."""
    path = os.pathsep.join(map(os.fspath, folders))
    done = subprocess.run(
        [sys.executable, "-c", READ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=Path(__file__).parents[2],
    )
    found, end = json.JSONDecoder().raw_decode(done.stdout)
    assert done.stdout[end:].strip() == "set()", "reading imports nothing heavy"
    return {package["name"]: package for package in found["packages"]}


# -- the decision ----------------------------------------------------------------------------------------------------


def test_a_pair_known_not_to_load_is_refused_with_the_pair_to_install_that_keeps_torch() -> None:
    assert str(find_conflict(_make("2.11.0", "2.11.1"), PAIR)) == (
        "torch 2.11.0 and torchaudio 2.11.1 do not go together: libtorchaudio.so: undefined symbol: "
        "torch_exception_get_what_without_backtrace; type: pip install torch==2.11.0 torchaudio==2.11.0"
    )


def test_pairs_that_work_are_not_refused_nor_are_those_that_nobody_has_tried() -> None:
    for trial in TRIALS:
        assert (find_conflict(_make(trial.torch, trial.torchaudio), PAIR) is None) == (not trial.problem)
    for torch in ("2.11.0a0+git1234567", "2.16.0.dev20261128+cu130", "2.11.0rc1", "", "built here"):
        assert find_conflict(_make(torch, FAILED.torchaudio), PAIR) is None


@given(st.sampled_from(TRIALS), st.sampled_from(["", "+cpu", "+cu130", "+rocm6.4", "+local.1"]))
def test_a_release_stands_for_every_build_of_it_and_the_remedy_is_for_the_build_that_is_there(
    trial: Any, build: str
) -> None:
    conflict = find_conflict(_make(trial.torch + build, trial.torchaudio + build), PAIR)
    assert (conflict is None) == (not trial.problem)
    if conflict is not None:
        index = f" --index-url https://download.pytorch.org/whl/{build[1:]}" if build not in ("", "+local.1") else ""
        assert conflict.remedy.endswith(index or conflict.remedy[-5:])
        assert ("--index-url" in conflict.remedy) == bool(index)


@given(st.sampled_from(["", *{t.torch for t in TRIALS}, "9.9"]), st.sampled_from(["", "2.11.0", "2.11.1", "9.9"]))
def test_the_pair_to_install_is_always_one_that_was_tried_and_works(torch: str, torchaudio: str) -> None:
    trial = choose_pair(_make(torch, torchaudio))
    assert trial in TRIALS and not trial.problem
    assert trial.torch == torch or torch not in {t.torch for t in TRIALS if not t.problem}


def test_no_pair_is_in_the_table_twice_and_every_one_has_its_day() -> None:
    assert len({(trial.torch, trial.torchaudio) for trial in TRIALS}) == len(TRIALS)
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\d", trial.day) for trial in TRIALS)


@pytest.mark.parametrize(
    ("torch", "torchaudio", "line"),
    [
        (
            "2.11.0",
            None,
            "torchaudio is not installed: prefork needs torchaudio; type: pip install torch==2.11.0 torchaudio==2.11.0",
        ),
        (
            None,
            "2.11.0",
            "torch is not installed: prefork needs torch; type: pip install torch==2.14.1 torchaudio==2.11.0",
        ),
    ],
)
def test_what_is_missing_is_named_with_the_pair_that_keeps_the_other(
    torch: str | None, torchaudio: str | None, line: str
) -> None:
    assert str(find_conflict(_make(torch, torchaudio), PAIR)) == line


def test_what_is_not_needed_is_not_missed() -> None:
    versions = _make("2.11.0", None, Package("stanza", present=False, wanted=">=1.15"))
    assert find_conflict(versions, ("torch",)) is None
    both = find_conflict(versions, ("torch", "torchaudio", "stanza"))
    assert both is not None and both.found == "stanza and torchaudio are not installed"
    assert both.remedy.endswith('&& pip install "stanza>=1.15"')


def test_what_an_extra_needs_is_installed_by_its_own_name() -> None:
    """prefork itself is on no index that pip knows."""
    versions = _make("2.11.0", "2.11.0", Package("pyannote-audio", present=False, wanted=">=4", extra="diarize"))
    conflict = find_conflict(versions, ("torch", "pyannote-audio"))
    assert conflict is not None and conflict.remedy == 'pip install "pyannote-audio>=4"'


def test_a_dependency_out_of_its_range_is_refused_with_what_to_type() -> None:
    old = Package("transformers", "4.57.1", wanted="<6,>=5.0")
    newer = Package("rustling", "0.10.0", wanted="<0.10,>=0.9")
    line = str(find_conflict(_make("2.11.0", "2.11.0", old, newer), (*PAIR, "transformers", "rustling")))
    assert line == (
        "transformers 4.57.1 and rustling 0.10.0 are installed: prefork 0.1.0 needs transformers<6,>=5.0 and "
        'rustling<0.10,>=0.9; type: pip install "transformers<6,>=5.0" "rustling<0.10,>=0.9"'
    )


@pytest.mark.parametrize("version", ["", "unknown", "5.0.dev0+g12", "5.3rc1", "5.0"])
def test_versions_that_are_not_known_or_of_the_range_are_not_refused(version: str) -> None:
    package = Package("transformers", version, wanted="<6,>=5.0.dev0")
    assert find_conflict(_make("2.11.0", "2.11.0", package), ("transformers",)) is None


def test_torch_is_judged_by_its_pair_alone_because_its_range_leaves_out_what_nobody_has_tried() -> None:
    versions = _make("2.15.0", "2.11.1")
    packages = tuple(replace(package, wanted="==2.11.*") for package in versions.packages)
    assert find_conflict(replace(versions, packages=packages), PAIR) is None


# -- reading ---------------------------------------------------------------------------------------------------------


def test_versions_are_those_of_what_would_be_imported(tmp_path: Path) -> None:
    _write(tmp_path / "one", "torch", "9.9", "raise SystemExit")
    _write(tmp_path / "two", "torch", "8.8")
    _write(tmp_path / "two", "Huggingface_Hub", "7.7")
    found = _read(tmp_path / "one", tmp_path / "two")
    assert (found["torch"]["version"], found["torch"]["copies"]) == ("9.9", []), "one hides the other"
    assert found["huggingface-hub"]["version"] == "7.7"


def test_two_copies_in_one_folder_are_found_but_not_two_names_of_that_folder(tmp_path: Path) -> None:
    _write(tmp_path / "one", "torch", "9.9")
    (tmp_path / "same").symlink_to("one")
    assert _read(tmp_path / "one", tmp_path / "same")["torch"]["copies"] == []
    _write(tmp_path / "one", "torch", "9.10")
    found = _read(tmp_path / "one", tmp_path / "same")["torch"]
    assert found["copies"] == ["9.10", "9.9"]
    versions = _make("9.9", "2.11.0")
    torch = replace(versions.packages[0], copies=("9.10", "9.9"), place="/x")
    conflict = find_conflict(replace(versions, packages=(torch, versions.packages[1])), PAIR)
    assert str(conflict).startswith("torch lies 2 times in /x (9.10, 9.9): its files are a mixture of them; type: pip ")


def test_metadata_of_another_copy_says_nothing(tmp_path: Path) -> None:
    """As of a source tree on PYTHONPATH: torch says its version in a file of its own."""
    for name in ("torch", "transformers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.16.0a0+git12'\n")
    found = _read(tmp_path)
    assert found["torch"]["version"] == "2.16.0a0+git12"
    assert (found["transformers"]["version"], found["transformers"]["present"]) == ("", True)


@pytest.mark.parametrize("damage", ["no version", "no file", "no text", "a folder"])
def test_metadata_that_cannot_be_read_is_no_version_and_no_error(tmp_path: Path, damage: str) -> None:
    _write(tmp_path, "torch", None if damage == "no version" else "9.9")
    (file,) = tmp_path.glob("*.dist-info/METADATA")
    if damage != "no version":
        file.unlink()
    if damage == "no text":
        file.write_bytes(b"\xff\xfe\x00")
    if damage == "a folder":
        file.mkdir()
    assert (_read(tmp_path)["torch"]["version"], _read(tmp_path)["torch"]["present"]) == ("", True)


def test_packages_in_a_zip_file_have_versions(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packages.zip", "w") as file:
        file.writestr("transformers/__init__.py", "")
        file.writestr(
            "transformers-5.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: transformers\nVersion: 5.1\n"
        )
    assert _read(tmp_path / "packages.zip")["transformers"]["version"] == "5.1"


def test_a_checkout_that_is_not_installed_declares_nothing(tmp_path: Path) -> None:
    (tmp_path / "prefork").symlink_to(Path(__file__).parents[2] / "prefork")
    code = f"import sys; sys.path[:] = [{str(tmp_path)!r}, *[p for p in sys.path if 'packages' not in p]]\n{READ}"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.JSONDecoder().raw_decode(done.stdout)[0]
    assert found["prefork"] == ""
    assert [(package["name"], package["wanted"]) for package in found["packages"]] == [(name, "") for name in PAIR]
