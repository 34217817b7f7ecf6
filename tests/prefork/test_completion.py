"""What a shell is told when somebody types TAB: asked as bash, zsh and fish do."""

from __future__ import annotations

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

# Typer takes the name of the variable from that of the program.
_CODE = "import sys; sys.argv[0] = 'prefork'; from prefork.cli.app import main; main()"


def _complete(line: str, shell: str) -> str:
    """What the shell is told at the end of the line."""
    as_bash = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    as_others = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = {**os.environ, "_PREFORK_COMPLETE": f"complete_{shell}", **as_bash, **as_others}
    command = [sys.executable, "-c", _CODE]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prefork al", ["align"]),
        ("prefork m", ["morphotag", "matrix", "memlog"]),
        ("prefork plan tr", ["transcribe"]),
        ("prefork align --utr", ["--utr", "--utr-model"]),
        ("prefork align in out --memory-l", ["--memory-limit"]),
        ("prefork --force-cpu samp", ["samples"]),
        ("prefork align no-such", []),  # the shell then completes names of files
    ],
)
def test_commands_and_options_are_completed(line: str, expected: list[str]) -> None:
    assert _complete(line, "bash").split() == expected


def test_zsh_and_fish_are_told_the_same_with_explanations() -> None:
    line = "prefork align --utr"
    assert re.findall(r'"(--[-a-z]+)":"', _complete(line, "zsh")) == ["--utr", "--utr-model"]
    assert [text.partition("\t")[0] for text in _complete(line, "fish").splitlines()] == ["--utr", "--utr-model"]


def test_an_explanation_that_the_shell_evaluates_runs_nothing() -> None:
    told = _complete("prefork align --strat", "zsh")  # its help has a command in backquotes
    assert r"\`prefork plan\`" in told
    assert "`" not in told.replace(r"\`", "")


def test_an_answer_comes_at_once_and_without_anything_heavy() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert _complete("prefork align --stra", "bash") == "--strategy\n"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(seconds) < 1.5  # 0.4 is usual; 0.9 with a typer that imports pydantic
    code = f"import sys, atexit; atexit.register(lambda: print(*sys.modules)); {_CODE}"
    asked = {"_PREFORK_COMPLETE": "complete_bash", "COMP_WORDS": "prefork align --stra", "COMP_CWORD": "2"}
    environment = {**os.environ, **asked}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    option, *modules = done.stdout.split()
    assert option == "--strategy"
    assert not {"torch", "transformers", "numpy", "av", "stanza", "psutil"} & set(modules)


# How each shell says what it would complete.
_ASK = {
    "bash": ". ~/.bashrc; COMP_WORDS=(prefork al); COMP_CWORD=1; _prefork_completion prefork; echo ${COMPREPLY[@]}",
    "fish": "complete --do-complete 'prefork al' | string split --fields 1 \\t",
}


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_what_is_installed_for_a_shell_works_in_it(tmp_path: Path, shell: str) -> None:
    program = Path(sys.executable).with_name("prefork")
    if shutil.which(shell) is None or not program.is_file():
        pytest.skip(f"needs {shell}, and prefork installed")
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("XDG_CONFIG_HOME", None)

    def tell(command: str) -> str:
        done = subprocess.run([shell, "-c", command], env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert f"{shell} completion installed in {tmp_path}" in tell("prefork --install-completion; true")
    assert tell(_ASK[shell]) == "align\n"
