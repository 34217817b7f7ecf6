"""What a user types, sees and gets."""

from __future__ import annotations

import json
import os
import pty
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from rustling.chat import CHAT

from prefork.cli.options import BatchingOptions
from prefork.cli.parsing import make_batching
from prefork.engines.batching import Batching
from tests.prefork.command import PREFORK, SAMPLES, copy_sample, read_outputs, run, write_script, write_wav

CHAT_HEAD = "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tPAR Participant\n@ID:\teng|x|PAR|||||Participant|||\n"


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run over a folder with everything that can be wrong with a file, and two good ones."""
    source = tmp_path_factory.mktemp("troubled")
    copy_sample(source / "a [folder]", "child15", "ünïcode näme")
    copy_sample(source, "adult07", "new\nline")
    copy_sample(source, "adult07", "lonely")
    (source / "lonely.flac").unlink()
    copy_sample(source, "adult07", "cut")
    (source / "cut.flac").write_bytes((source / "cut.flac").read_bytes()[:200_000])
    copy_sample(source, "adult07", "empty")
    (source / "empty.flac").write_bytes(b"")
    copy_sample(source, "adult07", "silent")
    (source / "silent.flac").unlink()
    write_wav(source / "silent.wav", 0.0)
    (copy_sample(source, "adult07", "no chat")).write_text("hello\n")
    (copy_sample(source, "adult07", "latin")).write_bytes((CHAT_HEAD + "*PAR:\tné .\n@End\n").encode("latin-1"))
    (copy_sample(source, "adult07", "wordless")).write_text(CHAT_HEAD + "*PAR:\t0 .\n@End\n")
    (copy_sample(source, "adult07", "crowded")).write_text(CHAT_HEAD + f"*PAR:\t{'extraordinary ' * 500}.\n@End\n")
    copy_sample(source, "adult07", os.fsdecode(b"bytes\xff"))
    (source / "unused.flac").write_bytes((SAMPLES / "child15.flac").read_bytes())
    late = CHAT_HEAD + "*PAR:\tfirst one . \x152000_1000\x15\n*PAR:\tfar away . \x15900000_901000\x15\n@End\n"
    (copy_sample(source, "adult07", "times")).write_text(late)
    return source, run("align", source, source / "out")


def test_what_is_wrong_with_a_file_costs_only_that_file(
    troubled: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    source, done = troubled
    assert done.returncode == 1
    out = read_outputs(source / "out")
    found = {"a [folder]/ünïcode näme.cha", "new\nline.cha", os.fsdecode(b"bytes\xff.cha"), "cut.cha"}
    assert set(out) == {*found, "times.cha", "crowded.cha", "wordless.cha"}
    assert out["wordless.cha"] == (source / "wordless.cha").read_bytes()
    for name, text in out.items():
        CHAT.from_strs([text.decode()], parallel=False)
        assert (b"%wor:" in text) == (name in found)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("lonely.cha", "no recording named 'lonely'"),
        ("empty.cha", "empty"),
        ("silent.cha", "silent.wav"),
        ("no chat.cha", "is not CHAT"),
        ("latin.cha", "is not UTF-8"),
    ],
)
def test_a_failed_file_is_listed_with_its_reason_and_a_remedy(
    file: str, reason: str, troubled: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    lines = [line for line in troubled[1].stdout.splitlines() if line.startswith(f"failed  {file}: ")]
    assert lines, troubled[1].stdout
    assert reason in lines[-1]
    assert ";" in lines[-1]


def test_odd_times_are_reported_and_the_file_is_done(troubled: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    warnings = [line for line in troubled[1].stdout.splitlines() if line.startswith("warning times.cha: ")]
    assert [word for word in ("reversed", "not found", "ends at") if any(word in line for line in warnings)] == [
        "reversed",
        "not found",
        "ends at",
    ]


def test_a_recording_that_is_cut_off_is_used_as_far_as_it_goes_and_said_to_be(
    troubled: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    warnings = [line for line in troubled[1].stdout.splitlines() if line.startswith("warning cut.cha: ")]
    assert "of 34.7 s are missing at its end: it is cut off, copy it again" in warnings[0]
    assert any("its words have no times" in warning for warning in warnings)


def test_words_that_nobody_says_get_no_times_and_a_warning(
    troubled: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    (warning,) = [line for line in troubled[1].stdout.splitlines() if line.startswith("warning crowded.cha: ")]
    assert "not found in the recording" in warning
    assert b"\x15" not in read_outputs(troubled[0] / "out")["crowded.cha"]


def test_nothing_that_a_user_sees_is_a_traceback(troubled: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert "Traceback" not in troubled[1].stdout + troubled[1].stderr
    assert "unused  unused.flac" in troubled[1].stdout
    assert "new\\nline.cha" in troubled[1].stdout


def test_a_run_ends_with_a_table_of_what_was_done(troubled: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    table = [line.split() for line in troubled[1].stdout.splitlines()]
    rows = {words[0]: " ".join(words[1:]) for words in table if words}
    assert rows["files"].startswith("7 done, 5 failed")
    assert {"audio", "time", "speed", "workers", "weights", "private", "memory", "results"} <= rows.keys()
    assert rows["weights"] in ("17 MB, one copy for all workers", "39 MB, one copy for all workers")  # int8, float32


@pytest.mark.slow
def test_json_is_for_a_machine_and_every_format_is_written(tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child15")
    formats = ["--format", "chat,json", "--format", "textgrid", "--format", "srt,vtt,ctm"]
    done = run("align", tmp_path / "in", tmp_path / "out", "--json", "--workers", 1, *formats)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [event["event"] for event in events] == ["done", "summary"]
    names = {f"child15{suffix}" for suffix in (".cha", ".json", ".TextGrid", ".srt", ".vtt", ".ctm")}
    assert set(events[0]["files"]) == set(read_outputs(tmp_path / "out")) == names
    assert (events[1]["done"], events[1]["workers"], events[1]["failed"]) == (1, 1, {})
    words = [w for u in json.loads((tmp_path / "out" / "child15.json").read_text())["utterances"] for w in u["words"]]
    assert all(word["timing"] == "aligned" and word["start"] < word["end"] <= 33.1 for word in words)
    assert [word["start"] for word in words] == sorted(word["start"] for word in words)


@pytest.mark.slow
@pytest.mark.usefixtures("script_engine")
def test_quiet_says_nothing_of_what_went_well_and_names_what_did_not(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "good", "say x")
    done = run("align", tmp_path / "in", tmp_path / "out", "--engine", "script", "--quiet", "--format", "json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    write_script(tmp_path / "in", "bad", "raise")
    done = run("align", tmp_path / "in", tmp_path / "out", "--engine", "script", "-q", "--format", "json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bad.txt: script: this line cannot be processed; change it\n"


@pytest.mark.dependencies
@pytest.mark.slow
@pytest.mark.usefixtures("script_engine")
def test_on_a_terminal_there_is_a_line_for_each_worker_and_a_bar(tmp_path: Path) -> None:
    for number in range(3):
        write_script(tmp_path / "in", f"job{number}", *["sleep"] * 20)
    folders = [str(tmp_path / "in"), str(tmp_path / "out")]
    command = [*PREFORK, "align", *folders, "--engine", "script", "--workers", "2"]
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data
    os.close(master)
    text = shown.decode(errors="replace")
    assert process.returncode == 0, text
    assert all(part in text for part in ("loading the models", "worker 0", "worker 1", "/3 files", "left", "3 done"))


@pytest.mark.dependencies
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "whole number of at least 1, not '0'"),
        (["--workers", "-3"], "whole number of at least 1, not '-3'"),
        (["--workers", "many"], "whole number of at least 1, not 'many'"),
        (["--threads", "1.5"], "whole number of at least 1, not '1.5'"),
        (["--hang-limit", "0"], "a number of seconds above 0"),
        (["--format", "pdf"], "--format takes chat"),
        (["--media", "nowhere"], "nowhere: no such folder"),
        (["--engine", "ctx"], "no engine named 'ctx'"),
        (["--model", "./nowhere"], "there is no such folder"),
        (
            ["--model", "someone/some-model"],
            "someone/some-model: there is no such folder, and the hub cannot be reached",
        ),
        (["--max-segment", "-1"], "max_segment must be"),
        (["--batch-size", "0"], "--batch-size must be greater than or equal to 1, but is 0"),
        (["--devices", "gpu0"], "--devices: devices are cpu, cuda for all GPUs"),
    ],
)
def test_options_that_make_no_sense_end_the_run_with_one_message(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    copy_sample(tmp_path / "in", "child15")
    done = run("align", tmp_path / "in", tmp_path / "out", *arguments, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*.cha"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2, "max_num_elements": 4_160_000}, "--batch-size (2) and --max-num-elements (4160000)"),
        (
            {"max_num_elements": 16_000, "max_audio_len": 32_000},
            "--max-audio-len must be less than or equal to --max-num-elements (16000)",
        ),
        ({"min_audio_len": 9, "max_audio_len": 8}, "--min-audio-len must be less than or equal to --max-audio-len (8)"),
        ({"drop_remainder": True}, "--drop-remainder is for data sets"),
    ],
)
def test_batches_that_cannot_be_are_refused_by_the_name_of_the_option(options: dict[str, int], message: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        make_batching(BatchingOptions(**options))  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_batches_are_as_the_options_say_and_else_as_they_always_are() -> None:
    assert make_batching(BatchingOptions()) == Batching()
    assert make_batching(BatchingOptions(batch_size=3, num_seqs_multiple_of=1)) == Batching(
        batch_size=3, num_seqs_multiple_of=1
    )


@pytest.mark.slow
def test_places_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "in"
    assert "no such file or folder" in run("align", source, tmp_path / "out").stderr
    source.mkdir()
    assert "has no transcripts" in run("align", source, tmp_path / "out").stderr
    copy_sample(source, "child15")
    assert "is IN itself" in run("align", source, source / ".").stderr
    (tmp_path / "file").write_text("")
    assert "OUT must be a folder" in run("align", source, tmp_path / "file").stderr
    assert "give another OUT" in run("align", source, "/proc/nowhere").stderr
    done = run("align", tmp_path / "missing", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("script_engine")
def test_force_cpu_goes_before_and_after_the_command_and_into_the_environment(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "good", "say x")
    rest = ["align", tmp_path / "in", tmp_path / "out", "--engine", "script", "--format", "json", "--redo"]
    assert run("--force-cpu", *rest).returncode == 0
    assert run(*rest, "--force-cpu").returncode == 0
    assert run(*rest, PREFORK_FORCE_CPU="1").returncode == 0


@pytest.mark.exec  # it measures how long that takes, and says whether torch is there
def test_help_comes_at_once_and_without_torch() -> None:
    times = []
    for _ in range(5):
        started = time.monotonic()
        done = run("--help")
        times.append(time.monotonic() - started)
    assert "align" in done.stdout
    assert statistics.median(times) < 1.0  # what is wanted is 0.25 s; tests/benchmarks/runtime.py measures it
    code = "import sys\nfrom prefork.cli.app import app\ntry: app(['align', '--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'transformers', 'av', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.dependencies
@pytest.mark.exec
def test_the_version_is_shown() -> None:
    assert run("--version").stdout.strip() == "0.2.3"
