"""The recordings of ../shared/cases that went wrong, as a user transcribes and aligns them, with what is right."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.prefork.command import run

FORMATS = "chat,srt,vtt,ctm,json"


@pytest.fixture(scope="module")
def cases(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases") / "in"
    shutil.copytree(shared / "cases" / "recordings", folder, ignore=shutil.ignore_patterns("links", "text-tags"))
    data = shared / "cases" / "recordings" / "links" / "data"
    shutil.copytree(data, folder.parent / "data")
    (folder / "links").mkdir()
    (folder / "links" / "talk.wav").symlink_to("../../data/talk.wav")
    return folder


@pytest.fixture(scope="module")
def transcribed(cases: Path, shared: Path) -> Path:
    out = cases.parent / "out"
    command = ["transcribe", cases, out, "--model", shared / "models" / "whisper-tiny.en", "--format", FORMATS]
    done = run(*command, "--follow-links", timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "shown.txt").write_text(done.stdout)
    return out


def say(out: Path, name: str) -> str:
    """The words, in lower case."""
    content = json.loads((out / f"{name}.json").read_text())
    return " ".join(word["text"].lower() for utterance in content["utterances"] for word in utterance["words"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ogg-vorbis/talk", "and so my fellow americans"),
        ("antiphase/antiphase", "and so my fellow americans ask not what your country can do for you"),
        ("quiet-float/quiet70", "and so my fellow americans"),
        ("truncated/cut_mp3", "and so my fellow americans ask not what your country"),
        ("late-sound/film", "and so my fellow americans"),
        ("links/talk", "and so"),
        ("same-stem/talk.wav", "and so"),
        ("same-stem/talk.mp3", "and so"),
        ("unknown-suffix/talk", "and so"),
        ("unknown-suffix/talk2", "and so"),
    ],
)
def test_what_is_said_is_heard(transcribed: Path, name: str, words: str) -> None:
    assert say(transcribed, name).startswith(words)


@pytest.mark.slow
def test_its_users_are_told_what_is_wrong_with_recordings(transcribed: Path) -> None:
    shown = (transcribed / "shown.txt").read_text()
    assert "warning truncated/cut_mp3.mp3: 4.5 s of 11.0 s are missing at its end" in shown
    assert "warning antiphase/antiphase.flac: its channels cancel each other out" in shown


@pytest.mark.slow
def test_times_are_those_of_the_film(transcribed: Path) -> None:
    content = json.loads((transcribed / "late-sound" / "film.json").read_text())
    assert content["utterances"][0]["words"][0]["start"] == pytest.approx(3.36, abs=0.1)
    assert (transcribed / "late-sound" / "film.srt").read_text().startswith("1\n00:00:03,")


@pytest.mark.slow
def test_every_word_lasts_and_subtitles_can_be_read(transcribed: Path) -> None:
    for path in transcribed.rglob("*.json"):
        if "utterances" in (content := json.loads(path.read_text())):
            timed = [w for u in content["utterances"] for w in u["words"] if w["start"] is not None]
            assert all(word["end"] - word["start"] >= 0.0199 for word in timed), path
    for path in (*transcribed.rglob("*.srt"), *transcribed.rglob("*.vtt")):
        for block in path.read_text().removeprefix("WEBVTT\n\n").strip().split("\n\n"):
            lines = re.sub(r"<[^>]*>", "", block).split("\n")[2:]
            assert len(lines) <= 2 and all(len(line) <= 42 for line in lines), path
    for suffix in ("srt", "vtt", "ctm"):
        assert "xxx" not in (transcribed / "xxx-in-subtitles" / f"repeats.{suffix}").read_text()
