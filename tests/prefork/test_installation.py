"""Installations that lack something: what a user reads then, said by real processes in real environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefork.check.fork_check import examine
from prefork.check.steps import Finding, conclude
from prefork.check.targets import find_targets
from prefork.engines import registry
from prefork.engines.base import LoadError
from prefork.installation import find_needs
from prefork.platform_matrix.matrix import Request
from prefork.platform_matrix.versions import find_module, read_versions
from prefork.pool.requests import make_plan
from tests.conftest import SCRIPT_ENGINE
from tests.prefork.command import SAMPLES, run, write_script
from tests.prefork.installations import HERE, Installation, link, write_metadata

PAIR = (
    "torch 2.11.0 and torchaudio 2.11.1 do not go together: libtorchaudio.so: undefined symbol: "
    "torch_exception_get_what_without_backtrace; type: pip install torch==2.11.0 torchaudio==2.11.0"
)
UNTOUCHED = "raise SystemExit('it was imported')"
Make = Callable[..., Installation]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An environment without what matches these names."""

    def build(*without: str) -> Installation:
        return Installation(tmp_path / "venv", without)

    return build


@pytest.fixture
def mismatched(make: Make) -> Installation:
    """torchaudio 2.11.1 beside torch 2.11.0, which nobody gets to import."""
    here = make("torch", "torch-*", "torchaudio", "torchaudio-*")
    for name, version in (("torch", "2.11.0"), ("torchaudio", "2.11.1")):
        here.add(name, version)
        here.add_module(name, UNTOUCHED)
    return here


def _say(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that has refused."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("prefork: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip().removeprefix("prefork: ")


# -- before anything heavy is imported -------------------------------------------------------------------------------


def test_a_pair_that_does_not_load_is_refused_by_every_command_before_it_is_imported(mismatched: Installation) -> None:
    out = mismatched.folder / "out"
    for command in (("align", SAMPLES, out), ("transcribe", SAMPLES, out), ("check", "ctc"), ("check",)):
        assert _say(mismatched.run(*command)) == PAIR
    assert not out.exists()
    done = mismatched.run_python("-c", "from prefork import Runtime; Runtime('ctc')")
    assert done.stderr.splitlines()[-1] == f"prefork.engines.errors.LoadError: {PAIR}"
    assert f"conflict  {PAIR}" in _flatten(mismatched.run("matrix").stdout)


def test_a_plan_is_refused_with_the_same_line(mismatched: Installation) -> None:
    done = mismatched.run("plan", "align", SAMPLES)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == f"refused: {PAIR}"


def test_what_is_missing_is_named_with_what_to_type(make: Make) -> None:
    here = make("torch", "torch-*", "torchaudio", "torchaudio-*", "transformers", "transformers-*")
    line = _say(here.run("align", SAMPLES, here.folder / "out"))
    assert line.startswith("torch, torchaudio and transformers are not installed: prefork needs torch")
    assert ' && pip install "transformers' in line
    assert _say(here.run("check", "--load", "os:getpid", "--infer", "os:getpid")).startswith("torch is not installed: ")


def test_even_what_the_command_itself_is_made_of(make: Make) -> None:
    here = make("typer", "typer-*")
    assert _say(here.run("--version")).startswith(
        "typer is not installed: prefork needs typer<0.29,>=0.24; type: pip install"
    )


def test_a_dependency_that_is_too_old_or_there_twice_is_named_with_what_to_type(make: Make) -> None:
    here = make("transformers-*")
    here.add("transformers", "4.57.1")
    line = _say(here.run("align", SAMPLES, here.folder / "out"))
    assert line.startswith("transformers 4.57.1 is installed: prefork ") and 'type: pip install "transformers' in line
    here.add("transformers", "5.3.0")
    line = _say(here.run("morphotag", SAMPLES, here.folder / "out"))
    assert line.startswith(f"transformers lies 2 times in {here.packages.resolve()} (4.57.1, 5.3.0): ")


@pytest.mark.slow
def test_a_function_of_the_users_needs_neither_torchaudio_nor_any_engines_packages(make: Make) -> None:
    here = make("torchaudio", "torchaudio-*", "stanza", "stanza-*", "transformers", "transformers-*")
    code = (
        "from prefork import Runtime\nfrom script_functions import load_linear, score\n"
        "if __name__ == '__main__':\n"
        "    with Runtime(load=load_linear, workers=1, force_cpu=True) as runtime:\n"
        "        print(runtime.submit(score, 1.0).result() is not None)\n"
    )
    (here.folder / "script.py").write_text(code)
    link(SCRIPT_ENGINE, here.folder, ("*.dist-info",))
    done = here.run_python("script.py")
    assert done.stdout == "True\n", done.stderr


@pytest.mark.slow
def test_it_is_known_what_the_engines_import() -> None:
    """One of each kind, in a child of a process that has what all need."""
    names = ("assign", "match", "diarize", "stanza", "whisper")
    code = """
import json, os, sys
import prefork.work.worker
from prefork.check.fork_check import examine
from prefork.check.steps import Finding, conclude
from prefork.check.targets import find_targets
from prefork.engines import registry
for name in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        registry.find(name).load()
        print(json.dumps([name, sorted(sys.modules)]), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    versions = read_versions()
    for name, modules in map(json.loads, done.stdout.splitlines()):
        declared = {package.name for package in versions.packages if find_module(package.name) in modules}
        unknown = (
            declared - find_needs(versions, [name]) - {package.name for package in versions.packages if package.extra}
        )
        assert not unknown, f"{name} imports {unknown}"
    assert len(done.stdout.splitlines()) == len(names)


# -- what shows only when it is imported -----------------------------------------------------------------------------


def _leave_out(here: Installation, *libraries: str) -> None:
    """torch, but for some of its libraries."""
    link(HERE / "torch", here.packages / "torch", ("lib",))
    link(HERE / "torch" / "lib", here.packages / "torch" / "lib", libraries)


@pytest.mark.parametrize("strategy", ["fork", "server", "spawn"])
def test_a_torch_without_its_libraries_is_said_once_whichever_process_finds_out(make: Make, strategy: str) -> None:
    here = make("torch")
    _leave_out(here, "libtorch_cpu.so")
    line = _say(here.run("--force-cpu", "align", SAMPLES, here.folder / "out", "--strategy", strategy))
    assert line.startswith("torch 2.") and "type: pip install --force-reinstall torch==" in line
    assert " cannot be imported: libtorch_cpu.so: cannot open shared object file: No such file or directory; " in line


def test_a_torch_without_its_libraries_is_said_by_the_commands_that_only_look(make: Make) -> None:
    here = make("torch")
    _leave_out(here, "libtorch_cpu.so")
    line = "cannot be imported: libtorch_cpu.so: cannot open shared object file: No such file or directory; type: pip "
    gpus = [row for row in here.run("matrix").stdout.splitlines() if row.startswith("gpus ")]
    assert line in gpus[0]
    assert line in _say(here.run("--force-cpu", "plan", "align", SAMPLES))
    done = here.run("check", "ctc", "--force-cpu")
    assert done.returncode == 2
    assert line in done.stdout.splitlines()[-1] and "Traceback" not in done.stdout


def test_a_package_that_fails_while_an_engine_imports_it_is_named_with_its_version(make: Make) -> None:
    here = make("num2words", "stanza")
    (here.packages / "stanza").mkdir()
    (here.packages / "stanza" / "__init__.py").write_text("import torch\nprint(torch.gone)")
    line = _say(here.run("--force-cpu", "morphotag", SAMPLES, here.folder / "out"))
    assert line.startswith(
        "engine stanza cannot be imported from prefork.engines.stanza.tagger:StanzaTagger: stanza 1."
    )
    assert (
        "cannot be imported: AttributeError: module 'torch' has no attribute 'gone'; type: pip install --force" in line
    )


@pytest.mark.slow
def test_a_package_that_only_a_worker_imports_ends_the_run_once_and_no_job_has_failed(
    tmp_path: Path, script_engine: None
) -> None:
    folder = tmp_path / "packages"
    entries = "[prefork.engines]\nlate = late:Late\n\n[prefork.declarations]\nlate = script_declarations:SCRIPT\n"
    write_metadata(folder, "late", "1.0", entry_points=entries)
    write_metadata(folder, "needed", "0.3")
    (folder / "needed.py").write_text("raise OSError('libneeded.so.2: cannot open shared object file')")
    (folder / "late.py").write_text(
        "from script_engine import ScriptEngine\n\n\nclass Late(ScriptEngine):\n"
        "    def prepare(self, job, segment):\n        import needed\n"
    )
    for name in ("a", "b", "c"):
        write_script(tmp_path / "in", name, "say something")
    path = f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"
    done = run("align", tmp_path / "in", tmp_path / "out", "--engine", "late", "--utr", "off", PYTHONPATH=path)
    assert _say(done) == (
        "needed 0.3 cannot be imported: libneeded.so.2: cannot open shared object file; "
        "type: pip install --force-reinstall needed==0.3"
    )
    assert "failed" not in done.stdout


# -- read-only, and other people's packages --------------------------------------------------------------------------


def test_site_packages_that_cannot_be_written_to_are_no_obstacle(make: Make) -> None:
    """Nor is anything written there by those who may write everywhere."""
    here = make()
    before = sorted(here.packages.rglob("*"))
    for place in (
        here.packages,
        *(path for path in here.packages.iterdir() if path.is_dir() and not path.is_symlink()),
    ):
        place.chmod(0o555)
    done = here.run("matrix", PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0 and "Linux, CPU" in done.stdout, done.stderr
    assert sorted(here.packages.rglob("*")) == before


BROKEN = {
    "absent": "absent = no_such_package:Engine",
    "exits": "exits = exiting:Engine",
    "raises": "raises = raising:Engine",
    "other": "other = json:JSONDecoder",
    "lacking": "lacking = json:Engine",
    "odd": "odd = ?!",
    "twice": "twice = json:JSONDecoder",
}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder of other people's packages, none of which is of any use."""
    folder = tmp_path / "packages"
    engines = "\n".join(BROKEN.values())
    write_metadata(folder, "broken", "1.5", entry_points=f"[prefork.engines]\n{engines}\n")
    write_metadata(
        folder, "another", "3.0", entry_points="[prefork.engines]\ntwice = json:JSONEncoder\nctc = json:loads\n"
    )
    (folder / "exiting.py").write_text("import sys\nsys.exit('no licence')")
    (folder / "raising.py").write_text("raise RuntimeError('of its own\\nin two lines')")
    return folder


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "absent",
            "engine absent cannot be imported from no_such_package:Engine: there is no module no_such_package; ",
        ),
        (
            "exits",
            "engine exits cannot be imported from exiting:Engine: it calls sys.exit; fix it, or uninstall broken",
        ),
        ("raises", "raising:Engine: RuntimeError: of its own; fix it, or uninstall broken"),
        ("other", "engine other: json:JSONDecoder is not a prefork.engines.base.Engine; fix its entry point"),
        ("lacking", "engine lacking cannot be imported from json:Engine: AttributeError: module 'json' has no attr"),
        ("odd", "engine odd cannot be imported from ?!: "),
        ("twice", "engine twice is provided by another 3.0 and broken 1.5; uninstall all but one of them"),
    ],
)
def test_an_engine_that_is_broken_is_refused_in_one_line_when_it_is_named(
    broken: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str
) -> None:
    monkeypatch.syspath_prepend(str(broken))
    with pytest.raises(LoadError) as raised:
        registry.create(name, {})
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_engines_that_are_broken_cost_nobody_else_anything(broken: Path, tmp_path: Path, script_engine: None) -> None:
    path = f"{broken}{os.pathsep}{os.environ['PYTHONPATH']}"
    matrix = run("matrix", PYTHONPATH=path, COLUMNS="400")
    assert matrix.returncode == 0, matrix.stderr
    assert "engine twice is provided by another 3.0 and broken 1.5" in matrix.stdout
    unknown = run("check", "thistle", PYTHONPATH=path)
    assert "no engine named 'thistle'" in _say(unknown)
    write_script(tmp_path / "in", "a", "say something")
    done = run("align", tmp_path / "in", tmp_path / "out", "--engine", "script", "--utr", "off", PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_entry_points_that_cannot_be_read_are_told_with_their_package(tmp_path: Path) -> None:
    """torch asks for the entry points of all packages when it is imported: then nothing can run, but it is not to
    blame."""
    folder = tmp_path / "packages"
    write_metadata(folder, "unreadable", "2.0", entry_points="[prefork.engines]\nthis is no entry\n")
    told = "the entry points of unreadable 2.0 cannot be read ("
    assert told in run("matrix", PYTHONPATH=str(folder), COLUMNS="400").stdout
    assert told in _say(run("check", "thistle", PYTHONPATH=str(folder)))
    line = _say(run("align", SAMPLES, tmp_path / "out", PYTHONPATH=str(folder)))
    assert told in line and line.endswith("; type: pip uninstall -y unreadable")


@pytest.mark.slow
def test_a_check_of_all_that_is_here_passes_over_engines_that_are_broken(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(broken))
    monkeypatch.setenv("PYTHONPATH", str(broken))
    targets = {target.name: target for target in find_targets([], {})}
    assert {"ctc", "stanza", "exits", "twice"} <= set(targets)
    assert registry.find("ctc").value.startswith("prefork."), "its name is prefork's own"
    plan = make_plan(Request(("ctc",), force_cpu=True))
    for name in ("exits", "twice"):
        steps = list(examine(targets[name], plan, 30.0))
        assert conclude(targets[name], steps) is Finding.SKIPPED, steps


# -- versions --------------------------------------------------------------------------------------------------------


def test_versions_are_listed_one_a_line_and_the_version_alone_is_as_it_was(make: Make) -> None:
    alone = run("--version").stdout
    assert alone.count("\n") == 1 and alone[0].isdigit()
    for options in (("--version", "-v"), ("-v", "--version")):
        rows = run(*options).stdout.splitlines()
        assert rows[0].split() == ["prefork", alone.strip()]
        assert len({row.rindex(row.split()[1]) for row in rows}) == 1, "aligned"
        assert {"python", "torch", "torchaudio", "transformers", "pyannote-audio"} <= {row.split()[0] for row in rows}
    here = make("stanza", "stanza-*")
    assert "stanza           not installed" in here.run("--version", "-v").stdout
    verbose = run("-v")
    assert verbose.returncode == 2


def _flatten(text: str) -> str:
    return " ".join(text.split()).replace("conflict ", "conflict  ")
