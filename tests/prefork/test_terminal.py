"""What stands on a terminal, in a notebook's cell, in a pipe: everything escaped, nothing folded, nothing cut off."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from prefork.cli.app import app
from prefork.cli.parsing import parse_language, parse_selection, parse_size
from prefork.cli.report import PlainReport, describe_loading
from prefork.cli.terminal import moves_cursor
from prefork.engines.audio.selection import Selection
from prefork.run.summary import Progress
from tests.prefork.command import PREFORK, run, write_script, write_wav

LINUX = {"TERM": "xterm-256color"}


@pytest.mark.parametrize(
    ("environment", "moves"),
    [
        (LINUX, True),
        ({"TERM": "dumb"}, False),
        ({}, False),
        ({**LINUX, "JPY_PARENT_PID": "1"}, False),
        ({**LINUX, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}, False),
        ({**LINUX, "COLAB_RELEASE_TAG": "x"}, False),
    ],
)
def test_frames_are_drawn_only_where_the_cursor_moves(environment: dict[str, str], moves: bool) -> None:
    assert moves_cursor(True, environment) == moves
    assert not moves_cursor(False, environment)


def test_where_it_does_not_a_line_now_and_then_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown = io.StringIO()
    report = PlainReport(Console(file=shown, force_terminal=True, color_system=None, width=80))
    report.load(["ctc"])
    report.begin(lambda: Progress([], 30.0, 120.0, 1, 4))
    for _ in range(300):
        now += 0.1
        report.refresh()
    lines = shown.getvalue().splitlines()
    assert lines[0] == describe_loading(["ctc"]) == "loading the models (ctc)"
    assert 2 <= len(lines[1:]) <= 3
    assert lines[1].startswith("1/4 files, 0:30 of 2:00, ") and lines[1].endswith(" left")


@pytest.mark.slow
@pytest.mark.usefixtures("script_engine")
@pytest.mark.parametrize("notebook", [False, True])
def test_a_cell_gets_no_frames_and_a_terminal_keeps_the_lines_of_what_is_done(tmp_path: Path, notebook: bool) -> None:
    for number in range(3):
        write_script(tmp_path / "in", f"job{number}", *["sleep"] * 10)
    command = [*PREFORK, "align", str(tmp_path / "in"), str(tmp_path / "out"), "--engine", "script"]
    environment = {**os.environ, **LINUX, **({"JPY_PARENT_PID": "1"} if notebook else {})}
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:  # the other end is closed
            pass
    os.close(master)
    assert process.returncode == 0, shown
    assert all(f"done    job{number}.txt".encode() in shown for number in range(3))
    assert b"loading the models (" in shown
    assert (b"\x1b[1A" in shown or b"\x1b[2K" in shown) != notebook
    if notebook:
        assert len(shown) < 3000


@pytest.mark.exec  # Python reads PYTHONIOENCODING as it starts
@pytest.mark.usefixtures("script_engine")
def test_names_that_an_encoding_lacks_or_that_hold_codes_are_escaped_and_end_nothing(tmp_path: Path) -> None:
    for name in ("你好", "\x1b[31mred\x07", "plain"):
        write_script(tmp_path / "in", name, "say x")
    (tmp_path / "in" / "bad\x1b[2J.cha").write_text("no chat")
    write_wav(tmp_path / "in" / "bad\x1b[2J.wav", 0.1)
    options = ["--engine", "script", "--format", "json"]
    done = run("align", tmp_path / "in", tmp_path / "out", *options, PYTHONIOENCODING="cp1252")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len(list((tmp_path / "out").glob("*.json"))) == 3
    assert "done    \\u4f60\\u597d.txt" in done.stdout
    assert "done    \\x1b[31mred\\x07.txt" in done.stdout
    assert "failed  bad\\x1b[2J.cha: " in done.stdout
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout


@pytest.mark.usefixtures("script_engine")
def test_a_run_with_nothing_to_do_loads_no_model(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "job", "say x")
    command = ["align", tmp_path / "in", tmp_path / "out", "--engine", "script", "--format", "json", "--json"]
    first, second = (json.loads(run(*command).stdout.splitlines()[-1]) for _ in range(2))
    assert (first["done"], first["workers"] > 0) == (1, True)
    assert (second["done"], second["skipped"], second["workers"], second["load_seconds"]) == (0, 1, 0, 0.0)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "job.txt").symlink_to(tmp_path / "in" / "job.txt")
    (tmp_path / "links" / "job.wav").symlink_to(tmp_path / "in" / "job.wav")
    refused = run("align", tmp_path / "links", tmp_path / "not", "--engine", "script", "--json")
    summary = json.loads(refused.stdout.splitlines()[-1])
    assert (refused.returncode, summary["workers"]) == (1, 0)
    assert "--follow-links" in summary["failed"]["job.txt"]
    followed = run("align", tmp_path / "links", tmp_path / "out2", "--engine", "script", "--follow-links", "--json")
    assert followed.returncode == 0, followed.stdout + followed.stderr


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["plan", "-h"], ["align", "-h"], ["memlog", "-h"]])
def test_help_is_short_to_ask_for_and_cuts_nothing_off(arguments: list[str]) -> None:
    shown = CliRunner().invoke(app, arguments, terminal_width=80)
    assert shown.exit_code == 0, shown.output
    assert "..." not in shown.output.replace("[ARGS]...", "").replace("de, zh ...", "")
    if arguments[0] in ("align", "memlog"):
        assert f"Example: prefork {arguments[0]} " in " ".join(shown.output.split())


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (lambda: parse_size("--memory-limit", "2"), "--memory-limit 2 is 2 bytes, .* did you mean 2GB"),
        (lambda: parse_size("--memory-limit", "999999"), "did you mean 999999GB"),
        (lambda: parse_language("xx"), "a code of ISO 639 such as en, deu or zh, not 'xx'$"),
        (lambda: parse_language("english"), "not 'english'; did you mean en"),
        (lambda: parse_selection(0, None), "--track takes a whole number of at least 1, not 0"),
        (lambda: parse_selection(None, "left"), "--channel takes mix or a whole number of at least 1, not 'left'"),
    ],
)
def test_what_is_meant_is_said(parse: object, message: str) -> None:
    assert callable(parse)
    with pytest.raises(typer.BadParameter, match=message):
        parse()


def test_what_makes_sense_is_taken() -> None:
    assert parse_size("--memory-limit", "2000000") == 2_000_000
    assert [parse_language(code) for code in (None, "en", "deu", "pt-BR", "yue")] == [None, "en", "deu", "pt-BR", "yue"]
    assert parse_selection(2, "mix") == Selection(2, ())


@pytest.mark.exec
def test_plans_and_the_matrix_are_not_folded_in_a_pipe() -> None:
    shown = run("matrix", FORCE_COLOR="1").stdout
    assert "\x1b" not in shown
    (claim,) = [line for line in shown.splitlines() if line.startswith("[1] ")]
    assert claim.endswith(")") and len(claim) > 150
