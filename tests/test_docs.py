"""README and prefork/docs: every command and every program on them runs, and every link leads somewhere.

A comment right above a block says what it is, where it is no command or program that anybody can run anywhere:

    <!-- needs: gpu -->             it is skipped where that is not there; several, with commas
    <!-- file: my_models.py -->     a file that the other blocks of the page find in their folder
    <!-- output -->                 what the block before it prints, in other figures
    <!-- in: aligned/a.cha -->      lines of a file that the block before it writes

Every block runs in a folder of its own, which has the samples as a checkout has them; those of README.md and install.md
compute on all of them, those of other pages on the first sentences of each, which takes a quarter of the time. What the
blocks start is forked by tests/launcher.py, but for those of README.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from typer.core import TyperGroup
from typer.main import get_command

from prefork.cli.app import app
from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from tests import launcher, launcher_client
from tests.engines.audio_files import write_audio

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "prefork" / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
SAMPLES = ROOT / "prefork" / "samples"
WHOLE = [README, DOCS / "install.md"]  # the samples are computed on from beginning to end
SECONDS = 11.0  # of a sample elsewhere
UNTIMED = 3  # utterances that are said within these seconds, in a sample without times

NEEDS = {
    "installation": "makes an environment and installs into it; .ci/run does what the README says",
    "suite": "runs the tests, of which this is one; .ci/run does it",
    "linters": "is what .ci/run runs",
    "checkout": "changes a checkout, or measures for minutes",
    "models": "needs models that are no part of the repository, in ../shared/models",
    "gpu": "needs an NVIDIA GPU",
    "slurm": "needs Slurm",
    "hardware": "is for a machine that the makers do not have",
    "network": "needs the network, to download a model",
    "service": "serves until it is stopped; tests/prefork/test_service.py runs it",
    "token": "needs the user's own account somewhere",
}
FOREIGN = {  # options of other people's commands
    "--extra-index-url": "pip",
    "--preload": "gunicorn",
    "--last-failed": "pytest",
    "--check": "ruff",
    "--user": "docker",
    "--scale": "docker compose",
    "--array": "sbatch",
    "--nodes": "sbatch",
    "--ntasks-per-node": "sbatch",
    "--cpus-per-task": "sbatch",
    "--mem": "sbatch",
    "--time": "sbatch",
    "--minutes": "python -m tests.faults",
    "--seed": "python -m tests.faults",
}
_MARK = re.compile(r"<!-- (needs|file|output|in)(?:: (.+))? -->")
_FENCE = re.compile(r"```(\w*)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_NAMED = re.compile(r"(?<![\w./-])(?:tests|engines|prefork|platform_matrix|\.ci|\.github)(?:/[\w.*-]*\w)+/?")


@dataclass(frozen=True)
class Block:
    """One fenced block. line: of the page, where its text begins. mark: what the comment above it says it is."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    value: str = ""
    shown: list[Block] = field(default_factory=list)  # of what it prints and writes

    @property
    def needs(self) -> list[str]:
        return self.value.split(", ") if self.mark == "needs" else []

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "python") and self.mark != "file"

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    blocks: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.fullmatch(lines[number])
        number += 1
        if fence is None:
            continue
        end = lines.index("```", number)
        mark = _MARK.fullmatch(lines[number - 2]) if number > 1 else None
        kind, value = (mark[1], mark[2] or "") if mark else ("", "")
        block = Block(page, number + 1, fence[1], "\n".join(lines[number:end]) + "\n", kind, value)
        if kind in ("output", "in"):
            next(other for other in reversed(blocks) if other.runs).shown.append(block)
        blocks.append(block)
        number = end + 1
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
PROGRAMS = [block for block in BLOCKS if block.runs]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# -- what runs


@pytest.fixture(scope="module")
def beginnings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first sentences of the samples."""
    folder = tmp_path_factory.mktemp("beginnings")
    for transcript in SAMPLES.glob("*.cha"):
        lines = transcript.read_text(encoding="utf-8").splitlines(keepends=True)
        ends = [re.search(r"_(\d+)\x15$", line) for line in lines]
        untimed = [number for number, line in enumerate(lines) if line.startswith("*") and not ends[number]]
        late = {number for number, end in enumerate(ends) if end and int(end[1]) > 1000 * SECONDS}
        kept = [line for number, line in enumerate(lines) if number not in {*late, *untimed[UNTIMED:]}]
        (folder / transcript.name).write_text("".join(kept), encoding="utf-8")
        recording = transcript.with_suffix(".flac")
        sound = read_audio(recording, 0, SECONDS)
        write_audio(folder / recording.name, sound[None], SAMPLE_RATE, "flac", sample_format="s16")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a checkout lies before a user: the samples, and an environment with prefork. Beside it is what
    `prefork samples samples` makes, which is the first command of the pages."""
    shutil.copytree(SAMPLES, tmp_path / "samples")
    (tmp_path / "prefork").mkdir()
    (tmp_path / "prefork" / "samples").symlink_to(SAMPLES)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    client = [] if launcher.Popen.is_off else ["-I", "-S", f'"{launcher_client.__file__}"', str(_find_door())]
    for name, module in (("python", ""), ("prefork", "-m prefork")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {" ".join(client)} {module} "$@"\n')
        (programs / name).chmod(0o755)
    return tmp_path


def _find_door() -> int:
    door = launcher.Popen.ask().door
    assert door is not None
    return door.fileno()


def _write_files(page: Path, folder: Path) -> None:
    """What the page says is in a file; and a package whose pyproject.toml it shows is installed."""
    for block in read_blocks(page):
        if block.mark != "file":
            continue
        (folder / block.value).write_text(block.text)
        if block.value == "pyproject.toml":
            project = tomllib.loads(block.text)["project"]
            information = folder / f"{project['name']}-{project['version']}.dist-info"
            information.mkdir()
            metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
            (information / "METADATA").write_text(metadata)
            groups = [
                "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
                for group, entries in project["entry-points"].items()
            ]
            (information / "entry_points.txt").write_text("\n".join(groups))


def _leave_out_installation(block: Block) -> str:
    """What comes after it."""
    steps = block.text.split("&&\n") if "&&\n" in block.text else block.text.splitlines(keepends=True)
    return ("&&\n" if "&&\n" in block.text else "").join(
        step for step in steps if " -m venv " not in step and not re.search(r"\bpipx? install\b", step)
    )


def _find_need(block: Block, folder: Path) -> str:
    """Why it cannot run here."""
    for need in block.needs:
        if need == "models":
            models = ROOT.parent / "shared" / "models"
            if models.is_dir():
                (folder / "models").symlink_to(models)
                continue
        is_gpu = need == "gpu" and Path("/dev/nvidiactl").exists()
        if is_gpu or (need == "installation" and _leave_out_installation(block)):
            continue
        return NEEDS[need]
    return ""


def _mark(block: Block) -> Any:
    """Those of the README are started as a user's shell starts them, and so is what is measured."""
    is_execed = block.page == README or "forkserver" in block.text
    return pytest.param(block, id=str(block), marks=[pytest.mark.exec] if is_execed else [])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(sys.platform != "linux", reason="the pages are for Linux, and for its shell")
@pytest.mark.parametrize("block", map(_mark, PROGRAMS))
def test_what_a_page_says_to_run_runs_and_does_what_it_says(block: Block, folder: Path, beginnings: Path) -> None:
    reason = _find_need(block, folder)
    if reason:
        pytest.skip(reason)
    printed, folder = _run(block, folder, beginnings)
    for shown in block.shown:
        if shown.mark == "output":
            for line in shown.text.splitlines():
                assert line == "..." or _leave_out_figures(line) in _leave_out_figures(printed), printed
        else:
            _compare_lines(shown, folder / shown.value)


@pytest.mark.slow
@pytest.mark.exec
@pytest.mark.skipif(sys.platform != "linux", reason="a forkserver's memory is measured as Linux has it")
def test_a_forkserver_of_the_standard_library_shares_the_weights_too(folder: Path, beginnings: Path) -> None:
    (block,) = [block for block in PROGRAMS if block.language == "python" and "forkserver" in block.text]
    private = [int(figure) for figure in re.findall(r"(\d+) MB of its own", _run(block, folder, beginnings)[0])]
    assert len(private) == 4
    assert max(private) < 67, "half of the weights"


_runs: dict[object, tuple[str, Path]] = {}


def _run(block: Block, folder: Path, beginnings: Path) -> tuple[str, Path]:
    """What it prints, and the folder it has run in: that of an earlier block if that is the same, on the same files."""
    named = [file.text for file in read_blocks(block.page) if file.mark == "file" and _is_used(file, block)]
    key = (block.text, *named, block.page in WHOLE and "samples" in block.text)
    if key not in _runs:
        _write_files(block.page, folder)
        _runs[key] = (_run_in(folder, block, beginnings), folder)
    return _runs[key]


def _is_used(file: Block, block: Block) -> bool:
    """Whether the block may notice that it is there."""
    return file.language == "toml" or Path(file.value).stem in block.text


def _run_in(folder: Path, block: Block, beginnings: Path) -> str:
    """What it prints."""
    if block.language == "bash":
        text = _leave_out_installation(block)
        if block.page not in WHOLE:
            text = re.sub(r"^prefork samples (\w+)$", rf"\g<0>\ncp {beginnings}/* \1/", text, flags=re.M)
        command = ["bash", "-euo", "pipefail", "-c", text]
    else:
        (folder / "program.py").write_text(block.text)
        command = [sys.executable, "program.py"]
    if block.page not in WHOLE and "prefork samples samples" not in block.text:
        shutil.copytree(beginnings, folder / "samples", dirs_exist_ok=True)
    path = f"{ROOT / '.editable'}{os.pathsep}{folder}"
    environment = {
        **os.environ,
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
    }
    if not launcher.Popen.is_off:
        environment[launcher.HARMLESS] = path
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        pass_fds=[] if launcher.Popen.is_off else [_find_door()],
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _leave_out_figures(text: str) -> str:
    """The same for a run that took longer or more, on more cores."""
    text = re.sub(r"\d+(?:[.,:]\d+)*", "N", text)
    text = re.sub(r"N (?:min N )?(?:kB|MB|GB|ms|s|min)\b", "N", text)
    return " ".join(text.replace("threads", "thread").split())


def _compare_lines(shown: Block, path: Path) -> None:
    """The lines are in the file; times may be off by a rounding of the processor's."""
    times = re.compile(r"␕(\d+)_(\d+)␕")
    written = path.read_text(encoding="utf-8").replace("\x15", "␕").splitlines()
    for line in shown.text.splitlines():
        (found,) = [other for other in written if times.sub("", other) == times.sub("", line)]
        for here, there in zip(times.findall(line), times.findall(found), strict=True):
            assert [int(time) for time in here] == pytest.approx([int(time) for time in there], abs=20)


COMMANDS = [
    Block(block.page, block.line, "bash", f"{command[1]}\n")
    for block in BLOCKS
    if block.language == "yaml"
    for command in re.finditer(r"(?:run|entry): (prefork check .+)", block.text)
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the pages are for Linux, and for its shell")
@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_the_commands_of_a_workflow_and_of_a_hook_run(block: Block, folder: Path, beginnings: Path) -> None:
    _run(block, folder, beginnings)


def test_every_workflow_of_a_page_is_yaml_and_has_jobs_or_hooks() -> None:
    for block in BLOCKS:
        if block.language == "yaml":
            content = yaml.safe_load(block.text)
            if content.get("services") or content.get("kind"):  # for other people's commands
                continue
            assert content.get("jobs") or all(repository["hooks"] for repository in content["repos"]), block


def test_the_hook_for_other_projects_is_a_command() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "prefork check"
    assert (hook["language"], hook["pass_filenames"]) == ("system", False)


def test_what_is_written_right_above_a_block_is_known() -> None:
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            assert not line.startswith("<!--") or _MARK.fullmatch(line), f"{_name(page)}: {line}"
    for block in BLOCKS:
        assert set(block.needs) <= set(NEEDS), block
        assert bool(block.value) == (block.mark not in ("", "output")), block


def test_every_mark_belongs_to_a_block() -> None:
    for page in PAGES:
        marks = [line for line in page.read_text(encoding="utf-8").splitlines() if _MARK.fullmatch(line)]
        assert len(marks) == sum(bool(block.mark) for block in read_blocks(page)), page


def test_a_block_that_looks_like_a_command_or_a_program_is_marked_as_one() -> None:
    """Such a block would not be run: only those in bash and python are."""
    for block in BLOCKS:
        assert block.language in ("", "bash", "python", "toml", "yaml"), block
        if not block.language and block.mark not in ("output", "in"):
            first = block.text.split()[0]
            assert first not in ("$", "pip", "python", "import", "from", "def"), block
            # A synopsis, which says what may be typed.
            assert first != "prefork" or re.search(r"\[|[A-Z]{2}|─", block.text), block


def test_ci_runs_the_first_two_blocks_of_the_readme() -> None:
    """.ci/run reads them by number: to make an environment, and to run the tests."""
    first, second, *_ = [block for block in read_blocks(README) if block.language == "bash"]
    assert first.needs == ["installation"]
    assert " install -q -e '.[test]' &&\n" in first.text
    assert _leave_out_installation(first) == ".venv/bin/prefork align prefork/samples aligned\n"
    assert second.needs == ["suite"]
    assert second.text == ".venv/bin/python -m pytest\n"


def test_the_linters_of_a_page_are_those_of_ci() -> None:
    run = (ROOT / ".ci" / "run").read_text().replace(".venv/bin/", "").splitlines()
    blocks = [block for block in PROGRAMS if "linters" in block.needs]
    assert blocks
    for block in blocks:
        assert set(block.text.replace(".venv/bin/", "").splitlines()) <= set(run), block


def test_the_hooks_before_a_commit_are_the_linters_of_ci_and_download_nothing() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    run = (ROOT / ".ci" / "run").read_text().splitlines()
    linters = [line for line in run if line.startswith((".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/lint-imports"))]
    assert [f".venv/bin/{hook['entry']}" for hook in repository["hooks"]] == linters


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_a_program_of_a_page_is_python(block: Block) -> None:
    compile(block.text, str(block), "exec")


# -- what is named


def _find_anchors(page: Path) -> set[str]:
    """As GitHub makes them of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _find_links(page: Path) -> list[str]:
    return _LINK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    for link in _find_links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in _find_anchors(target), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, left = set(), [README]
    while left:
        page = left.pop()
        reached.add(page)
        for link in _find_links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target in PAGES and target not in reached:
                left.append(target)
    assert reached == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_file_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    for name in _NAMED.findall(page.read_text(encoding="utf-8")):
        assert any(ROOT.glob(name.rstrip("/"))), name


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_option_and_command_that_a_page_names_is_one(page: Path) -> None:
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    groups = [command for command in root.commands.values() if isinstance(command, TyperGroup)]
    options = {"--install-completion", "--show-completion", "--help", *FOREIGN}
    for command in (root, *root.commands.values(), *(one for group in groups for one in group.commands.values())):
        options |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*\w", text)) <= options
    typed = [*re.findall(r"`([^`\n]+)`", text), *(line for b in read_blocks(page) for line in b.text.splitlines())]
    named = [match[1] for line in typed if (match := re.match(r"prefork ([a-z]+)", line))]
    assert set(named) <= set(root.commands)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160
