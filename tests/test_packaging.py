"""What is installed: a wheel, built from the sdist, in an environment that has no checkout on its path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"prefork": "prefork", "engines": "prefork/engines", "platform_matrix": "prefork/platform_matrix"}
LINKS = {"prefork/engines": "../engines", "prefork/platform_matrix": "../platform_matrix"}
USERS_MODULE = """
import engines
from prefork import Runtime, engines as theirs
from prefork.engines import registry

assert engines.MINE and theirs.__name__ == "prefork.engines", (engines, theirs)
print(Runtime.__module__, registry.find("match").value, engines.__file__, sep="\\n")
"""
TYPED_MODULE = """
from prefork import Runtime
from prefork.engines.base import Engine
from prefork.platform_matrix.matrix import decide

reveal_type(Engine.batch_seconds)
reveal_type(Runtime.plan)
reveal_type(decide)
"""
UNTYPED = "torch torchaudio transformers numpy psutil safetensors av huggingface_hub typer rich"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Built:
    sdist: Path  # unpacked
    wheel: Path
    python: Path  # of an environment with the wheel


def _environment(**more: str) -> dict[str, str]:
    """As a user has it who knows nothing of this checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more


def _run(*command: object, cwd: Path, timeout: float = 150, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [os.fspath(part) if isinstance(part, Path) else str(part) for part in command],
        cwd=cwd,
        env=_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _build(kind: str, source: Path, target: Path) -> Path:
    done = _run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target, cwd=source)
    assert done.returncode == 0, done.stderr
    (path,) = target.iterdir()
    return path


def _list(*folders: str) -> set[str]:
    """What the wheel must hold of these folders of the repository, as it is called there."""
    return {
        f"{PACKAGES[folder.split('/')[0]]}/{path.relative_to(ROOT / folder.split('/')[0])}"
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    with tarfile.open(_build("sdist", ROOT, folder / "sdist")) as archive:
        archive.extractall(folder, filter="data")
    (sdist,) = folder.glob("prefork-*")
    wheel = _build("wheel", sdist, folder / "wheel")
    done = _run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    assert done.returncode == 0, done.stderr
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = _run(python, "-m", "pip", "--isolated", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_run(python, "-c", code, cwd=folder).stdout.strip())
    # What the wheel depends on is taken from here. Python does not read the .pth files of a folder that is added so:
    # a checkout that is installed here as editable is not seen there.
    (site / "outside.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return Built(sdist, wheel, python)


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder of somebody who has a package `engines`, too."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "platform_matrix.py").write_text("MINE = True\n")
    (tmp_path / "script.py").write_text(USERS_MODULE)
    return tmp_path


def test_the_wheel_holds_code_models_samples_docs_and_types_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == _list(*PACKAGES)
    assert {name.split("/")[0] for name in names} == {"prefork"}
    assert {
        "prefork/py.typed",
        "prefork/samples/adult00.flac",
        "prefork/engines/registry.py",
        "prefork/docs/align.md",
    } <= names


def test_the_licences_of_all_that_comes_along_are_in_the_wheel_and_its_metadata(built: Built) -> None:
    bundled = [*sorted((ROOT / "engines" / "models").iterdir()), ROOT / "prefork" / "samples"]
    assert len(bundled) == 4
    with zipfile.ZipFile(built.wheel) as wheel:
        (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
        metadata = message_from_string(wheel.read(f"{folder}/METADATA").decode())
        names = metadata.get_all("License-File", [])
        texts = {name: wheel.read(f"{folder}/licenses/{name}").decode() for name in names}
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT AND BSD-2-Clause AND CC-BY-SA-4.0 AND PDDL-1.0"
    assert "Apache License" in texts["LICENSE"]
    assert "MIT License" in texts["engines/models/ctc-aligner-en/LICENSE"]
    assert "MIT License" in texts["engines/models/whisper-tiny.en/LICENSE"]
    assert built.wheel.stat().st_size < 80e6
    assert "Attribution-ShareAlike 4.0" in texts["engines/models/stanza-en-ewt-small/LICENSE"]
    assert "Public Domain Dedication" in texts["engines/models/stanza-en-ewt-small/LICENSE-vectors"]
    for place in bundled:
        assert "licen" in texts[f"{place.relative_to(ROOT)}/README.md"].lower()


def test_who_has_only_the_wheel_runs_the_first_example_beside_a_package_engines(
    built: Built, users_folder: Path
) -> None:
    python, prefork = built.python, built.python.with_name("prefork")
    where = _run(python, "-c", "import prefork; print(prefork.__file__)", cwd=users_folder).stdout
    assert Path(where.strip()).is_relative_to(built.python.parents[1])
    copied = _run(prefork, "samples", "first try", cwd=users_folder)
    assert copied.stdout.splitlines()[-1] == "next: prefork align 'first try' aligned"
    done = _run(
        prefork, "align", "first try", "aligned", "--workers", "2", cwd=users_folder, PYTHONPATH=str(users_folder)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for transcript in (users_folder / "first try").glob("*.cha"):
        text = (users_folder / "aligned" / transcript.name).read_text()
        utterances = sum(line.startswith("*") for line in text.splitlines())
        times = [line.count("\x15") for line in text.splitlines() if line.startswith("%wor")]
        assert len(times) == utterances
        assert min(times) > 1


@pytest.mark.parametrize("install", ["wheel", "as the tests have it"])
def test_a_package_engines_of_the_user_s_own_and_prefork_work_in_one_process(
    built: Built, users_folder: Path, install: str
) -> None:
    python = built.python if install == "wheel" else Path(sys.executable)
    done = _run(python, "script.py", cwd=users_folder)
    assert done.returncode == 0, done.stderr
    match = "prefork.engines.alignment.word_matching:WordMatcher"
    assert done.stdout.splitlines() == ["prefork.pool.runtime", match, str(users_folder / "engines" / "__init__.py")]


@pytest.mark.parametrize("install", ["wheel", "as the tests have it"])
@pytest.mark.parametrize("name", ["engines", "platform_matrix", "tests"])
def test_nothing_but_prefork_is_installed_at_the_top(built: Built, tmp_path: Path, install: str, name: str) -> None:
    python = built.python if install == "wheel" else Path(sys.executable)
    done = _run(python, "-c", f"import prefork, {name}", cwd=tmp_path)
    assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr


def test_the_command_has_a_name_however_it_is_started(built: Built, tmp_path: Path) -> None:
    for command in ([built.python.with_name("prefork")], [built.python, "-m", "prefork"]):
        assert _run(*command, "--version", cwd=tmp_path).stdout == "0.2.3\n"
    assert _run(built.python.with_name("prefork"), "--help", cwd=tmp_path).stdout.startswith("Usage: prefork [")
    assert _run(built.python, "-m", "prefork", "--help", cwd=tmp_path).stdout.startswith("Usage: python -m prefork [")


def test_a_type_checker_knows_the_types_of_what_is_installed(built: Built, tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(TYPED_MODULE)
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in UNTYPED.split())  # they take a minute
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\ndisallow_subclassing_any = false\n{skipped}")
    done = _run(sys.executable, "-m", "mypy", "--python-executable", built.python, "typed.py", cwd=tmp_path)
    revealed = [line.partition("Revealed type is ")[2] for line in done.stdout.splitlines() if "Revealed" in line]
    assert len(revealed) == 3, done.stdout
    assert "float" in revealed[0]
    assert all("prefork.platform_matrix.matrix.Plan" in text for text in revealed[1:])
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def checkout_without_links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As git makes it where there are no symbolic links: a file that holds where the link leads."""
    checkout = tmp_path_factory.mktemp("no-links")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, checkout / folder, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, checkout)
    for link, target in {**LINKS, ".editable/prefork": "../prefork"}.items():
        (checkout / link).unlink(missing_ok=True)
        (checkout / link).parent.mkdir(exist_ok=True)
        (checkout / link).write_text(target)
    return checkout


def test_a_checkout_without_symbolic_links_makes_the_same_wheel(
    built: Built, checkout_without_links: Path, tmp_path: Path
) -> None:
    assert _build("wheel", checkout_without_links, tmp_path).read_bytes() == built.wheel.read_bytes()


@pytest.mark.parametrize("module", ["prefork", "prefork.engines", "prefork.cli.app"])
def test_sources_that_lack_the_links_say_so_and_what_to_do(
    built: Built, checkout_without_links: Path, module: str
) -> None:
    for sources in (built.sdist, checkout_without_links):
        done = _run(sys.executable, "-c", f"import {module}", cwd=sources)
        *_, last = done.stderr.splitlines()
        assert last.startswith(f"ImportError: {sources / 'prefork'} is not the whole of prefork: ")
        assert "pip install ." in last
        assert "core.symlinks=true" in last
        assert "During handling" not in done.stderr


def test_the_sdist_holds_what_the_tests_need(built: Built) -> None:
    assert (built.sdist / "tests" / "conftest.py").is_file()
    assert (built.sdist / "LICENSE").is_file()
    assert not any(path.is_symlink() for path in built.sdist.rglob("*"))
