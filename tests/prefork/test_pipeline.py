"""Several engines in one run: what goes from stage to stage, which models are loaded when, and what services do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from prefork import Job, LoadError, Runtime, Stopped
from prefork.pool.jobs import JobResult
from prefork.pool.pipeline import Pipeline, Residency, Stage, align, list_phases, transcribe
from prefork.run.request import RunRequest
from prefork.run.runner import run
from prefork.run.summary import Progress, Report, Summary
from tests.prefork.command import read_outputs, write_script

pytestmark = pytest.mark.usefixtures("script_engine")
THREE = (Stage("script"), Stage("relay"), Stage("collect"))


class Silent(Report):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.summary: Summary | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self, summary: Summary) -> None:
        self.summary = summary


def _write(folder: Path, name: str, *lines: str) -> Job:
    path = folder / f"{name}.txt"
    path.write_text("\n".join(lines))
    return Job(path.name, path, seconds=float(len(lines)))


def _engines(pipeline: tuple[Stage, ...]) -> list[str]:
    return [stage.engine for stage in pipeline]


def test_every_stage_gets_what_the_one_before_it_has_made(tmp_path: Path) -> None:
    jobs = [_write(tmp_path, name, "say one", "say three") for name in "abc"]
    with Runtime(THREE, workers=2) as runtime:
        results = sorted(runtime.map(jobs), key=lambda result: result.job.id)
        zygote = runtime.supervisor.zygote_pid()
        assert zygote is not None
    assert [result.job.id for result in results] == ["a.txt", "b.txt", "c.txt"]
    for result in results:
        assert result.document is not None, result.error
        assert [u.text for u in result.document.utterances] == ["say one relay 21", "say three relay 27"]
        assert result.document.warnings == ("4 words",)


@pytest.mark.slow
def test_engines_with_the_same_model_share_one(tmp_path: Path) -> None:
    with Runtime((Stage("script"), Stage("relay")), workers=1) as alone:
        (first,) = alone.map([_write(tmp_path, "a", "say one")])
        assert alone.supervisor.inventory is not None
        weights = alone.supervisor.inventory.weights
    with Runtime((Stage("script"), Stage("relay"), Stage("twin")), workers=1) as runtime:
        (result,) = runtime.map([_write(tmp_path, "a", "say one")])
        assert runtime.supervisor.inventory is not None
        assert runtime.supervisor.inventory.weights == weights
    assert first.document is not None and result.document is not None, (first.error, result.error)
    assert result.document.utterances[0].text == f"{first.document.utterances[0].text} twin 48"


def test_a_stage_that_fails_ends_its_job_alone(tmp_path: Path) -> None:
    jobs = [_write(tmp_path, "good", "say one"), _write(tmp_path, "bad", "raise")]
    with Runtime(THREE, workers=2) as runtime:
        results = {result.job.id: result for result in runtime.map(jobs)}
    assert "cannot be processed" in str(results["bad.txt"].error)
    assert results["good.txt"].error is None


def _return(report: Silent) -> Silent:
    return report


@pytest.mark.slow
def test_models_that_take_turns_give_the_same_as_models_that_stay(tmp_path: Path) -> None:
    for number in range(3):
        write_script(tmp_path / "in", f"talk{number}", "say one", "say two")
    write_script(tmp_path / "in", "bad", "raise")
    outputs, summaries = [], []
    for residency in Residency:
        report, target = Silent(), tmp_path / residency
        request = RunRequest(
            tmp_path / "in", target, "align", THREE, formats=("json",), residency=residency, workers=2, force_cpu=True
        )
        assert run(request, partial(_return, report)) == 1
        outputs.append(read_outputs(target))
        assert report.summary is not None
        summaries.append(report.summary)
        (log,) = (target / "performance_logs").glob("*.performance.json")
        assert {stage.get("engine") for stage in json.loads(log.read_text())["stages"]} == {None, *_engines(THREE)}
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 3
    whole, turns = summaries
    assert (whole.done, set(whole.failed)) == (turns.done, set(turns.failed)) == (3, {"bad.txt"})
    assert turns.weights < whole.weights
    again = Silent()
    assert run(replace(request, residency=Residency.ALL), lambda: again) == 1
    assert again.summary is not None and again.summary.skipped == 3


@pytest.mark.slow
def test_a_model_that_changes_before_its_turn_is_not_used(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "talk", "say one")
    model = tmp_path / "model.bin"
    model.write_bytes(b"one")

    class Changing(Silent):
        def begin(self, get_progress: Callable[[], Progress]) -> None:
            time.sleep(1.0)  # the first model computes already, and the other one's file is known
            model.write_bytes(b"two")

    pipeline = (Stage("script"), Stage("relay", {"file": str(model)}))
    request = RunRequest(
        tmp_path / "in", tmp_path / "out", "align", pipeline, formats=("json",), residency=Residency.STAGE, workers=1
    )
    with pytest.raises(LoadError, match=r"model\.bin: has changed since this run began; start again"):
        run(request, Changing)
    assert not read_outputs(tmp_path / "out")
    assert run(request, Silent) == 0
    again = Silent()
    model.write_bytes(b"six")
    assert run(request, lambda: again) == 0
    assert again.notes == ["1 file will be made again: weights has changed"]


def test_phases_are_cut_where_another_model_begins() -> None:
    pipeline = tuple(Stage(name) for name in ("language", "whisper", "diarize", "assign"))
    assert [_engines(phase) for phase in list_phases(pipeline)] == [["language", "whisper"], ["diarize", "assign"]]
    alike = tuple(Stage(name) for name in ("ctc-recovery", "ctc"))
    assert list_phases(alike) == [alike]
    assert [_engines(phase) for phase in list_phases((Stage("rev"), Stage("match"), Stage("ctc")))] == [
        ["rev", "match", "ctc"]
    ]


@pytest.mark.parametrize(
    ("pipeline", "engines"),
    [
        (align, "ctc-recovery ctc"),
        (lambda: align(utr="off"), "ctc"),
        (lambda: align("whisper"), "ctc-recovery whisper-aligner"),
        (lambda: align("whisper", utr="whisper"), "whisper match whisper-aligner"),
        (lambda: align(utr="rev"), "rev match ctc"),
        (lambda: align("wav2vec2"), "wav2vec2"),
        (lambda: align("script"), "script"),
        (lambda: align("ruler", utr="parrot"), "parrot match ruler"),
        (lambda: align("ruler", utr="ctc"), "ctc-recovery ruler"),
        (transcribe, "language whisper assign"),
        (lambda: transcribe(language="en", diarize=True), "whisper diarize assign"),
        (lambda: transcribe("rev", diarize=True), "rev assign"),
        (lambda: transcribe(language="en", speakers=2), "whisper diarize assign"),
        (lambda: transcribe("rev", diarize=True, diarize_model="here"), "rev diarize assign"),
        (lambda: transcribe("parrot"), "parrot assign"),
        (lambda: transcribe("parrot", diarize=True), "parrot diarize assign"),
        (lambda: transcribe("herald", diarize=True), "herald assign"),
    ],
)
def test_commands_are_the_stages_that_their_options_ask_for(pipeline: Callable[[], Pipeline], engines: str) -> None:
    assert " ".join(_engines(pipeline())) == engines


def test_recovery_takes_the_aligners_model_where_it_is_of_the_same_kind() -> None:
    recovery, aligner = align(model="mine", dtype="bfloat16")
    assert recovery.options == aligner.options == {"model": "mine", "dtype": "bfloat16"}
    recovery, _, _ = align(model="mine", utr="whisper")
    assert "model" not in recovery.options
    recovery, _, _ = align(model="mine", utr="whisper", utr_model="other", language="de")
    assert recovery.options == {"model": "other", "language": "de", "only_untimed": True}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: align(utr="never"), "--utr takes auto, ctc, whisper, rev, parrot, herald, off, not 'never'"),
        (lambda: transcribe("ctc"), "transcribe takes --engine whisper, rev, parrot or herald, not 'ctc'"),
        (lambda: transcribe("rev", speakers=2), "Rev.ai counts speakers itself"),
        (lambda: transcribe("rev", "tiny"), "Rev.ai brings its own model"),
    ],
)
def test_pipelines_that_cannot_be_are_refused(make: object, reason: str) -> None:
    assert callable(make)
    with pytest.raises(LoadError, match=reason):
        make()


def test_a_service_works_in_threads_of_this_process_and_costs_no_job_but_its_own(tmp_path: Path) -> None:
    jobs = [_write(tmp_path, f"talk{number}", "speak") for number in range(6)]
    jobs.append(_write(tmp_path, "bad", "refuse"))
    with Runtime((Stage("oracle", {"in_flight": 3}), Stage("relay")), workers=1) as runtime:
        results = {result.job.id: result for result in runtime.map(jobs)}
    assert "does not want this" in str(results.pop("bad.txt").error)
    most = 0
    for result in results.values():
        assert result.document is not None, result.error
        assert result.document.utterances[0].text == "oracle speak relay 36"
        most = max(most, int(result.document.heard[1].text))
    assert 1 < most <= 3


@pytest.mark.exec  # its engine says whether torch is there
def test_a_service_alone_needs_no_torch_here(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from prefork import Job, Runtime\nfrom prefork.pool.pipeline import Stage\n"
        "if __name__ == '__main__':\n"
        "    with Runtime((Stage('oracle'), Stage('collect')), workers=1) as runtime:\n"
        "        (result,) = runtime.map([Job('a', Path('a.txt'))])\n"
        "        print(result.document.heard[0].text, result.document.warnings)\n"
    )
    (tmp_path / "a.txt").write_text("speak")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "free ('2 words',)\n", done.stderr


def test_a_service_that_refuses_the_key_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="the key is refused"), Runtime((Stage("oracle", {"key": "bad"}),)):
        pytest.fail("the block must not begin")
    jobs = [_write(tmp_path, name, "expire") for name in "abc"]
    with Runtime((Stage("oracle"), Stage("collect")), workers=1) as runtime:
        results = list(runtime.map(jobs))
    assert all("the key has expired" in str(result.error) for result in results)


def test_what_waits_for_a_service_is_given_up_at_once_when_the_run_is_stopped(tmp_path: Path) -> None:
    results: list[JobResult] = []
    jobs = [_write(tmp_path, f"talk{number}", "wait") for number in range(5)]
    runtime = Runtime((Stage("oracle"), Stage("collect")), workers=1)
    runtime.wait_until_loaded()
    thread = threading.Thread(target=lambda: results.extend(runtime.map(jobs)))
    thread.start()
    time.sleep(0.3)
    started = time.monotonic()
    runtime.supervisor.drain(0)
    thread.join(10)
    runtime.shutdown()
    assert time.monotonic() - started < 5
    assert len(results) == 5
    assert all(isinstance(result.error, Stopped) for result in results)
