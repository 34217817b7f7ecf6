"""Which files of a folder are recordings, which of several is meant, and which links lead to some."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest

from prefork.engines.audio.reader import Selection
from prefork.engines.base import InputError
from prefork.pool.pipeline import Intake
from prefork.run.corpus import Corpus, find_jobs
from tests.engines.audio_files import make_sound, write_audio
from tests.prefork.test_corpus import CHAT, get_ids, get_reason, write_recording, write_text

RATE = 16_000
CONTAINERS = {
    **{f"a{suffix}": ("libmp3lame", "mp3") for suffix in (".mpga", ".mp2x", "")},
    **{f"a{suffix}": ("pcm_s16be", "au") for suffix in (".au", ".snd")},
    **{f"a{suffix}": ("pcm_s16le", "wav") for suffix in (".wav", ".recording", ".2024")},
    **{f"a{suffix}": ("aac", "mp4") for suffix in (".m4b", ".m4r", ".3ga")},
    **{f"a{suffix}": ("libopus", "webm") for suffix in (".weba", ".WEBA")},
    "a.mka": ("vorbis", "matroska"),
    "a.mp2": ("mp2", "mp2"),
    "a.ac3": ("ac3", "ac3"),
    "a.w64": ("pcm_s16le", "w64"),
    "a.wv": ("wavpack", "wv"),
    "a.tta": ("tta", "tta"),
    "a.aifc": ("pcm_s16be", "aiff"),
    "a.caf": ("pcm_s16be", "caf"),
    "a.voc": ("pcm_s16le", "voc"),
    "a.flv": ("aac", "flv"),
    "a.ts": ("aac", "mpegts"),
    "a.nut": ("pcm_s16le", "nut"),
    "a.amr": ("libopencore_amrnb", "amr"),
    "a.oma": ("aac", "adts"),  # whatever its name says
    "a.g722": ("g722", "g722"),
    "a.dat": ("flac", "flac"),
}


def write_container(path: Path, codec: str, form: str, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV {av.__version__} comes without the encoder {codec}")
    rate = {"libopencore_amrnb": 8000, "ac3": 48_000}.get(codec, RATE)
    channels = 2 if codec == "vorbis" else 1
    sound = make_sound(seconds, rate, channels)
    whole = write_audio(path.parent / f"{path.name}.part", sound, rate, codec, container=form)
    return whole.rename(path)


def find(folder: Path, intake: Intake = Intake.RECORDINGS, **options: object) -> Corpus:
    return find_jobs(folder / "in", folder / "out", intake=intake, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("intake", [Intake.RECORDINGS, Intake.PAIRS])
def test_recordings_are_found_whatever_they_are_called(tmp_path: Path, name: str, intake: Intake) -> None:
    write_container(tmp_path / "in" / name, *CONTAINERS[name])
    if intake is Intake.PAIRS:
        write_text(tmp_path / "in" / "a.cha", CHAT.format("a", "audio"))
    corpus = find(tmp_path, intake)
    (job,) = corpus.jobs
    assert job.media == tmp_path / "in" / name
    assert job.seconds == pytest.approx(0.5, abs=0.15)
    assert (corpus.problems, corpus.notices) == ((), ())


def test_what_ffmpeg_does_not_know_is_listed_and_counted_where_there_is_much_of_it(tmp_path: Path) -> None:
    write_recording(tmp_path / "in" / "talk.wav")
    (tmp_path / "in" / "scan.pdf").write_bytes(b"%PDF-1.7\n" + bytes(500))
    (tmp_path / "in" / "noise.bin").write_bytes(np.random.default_rng(3).bytes(200_000))
    for number in range(30):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    for name in ("talk.cha", "talk.txt", "talk.TextGrid", "talk.srt", "talk.json", ".hidden"):
        write_text(tmp_path / "in" / name)
    corpus = find(tmp_path)
    assert get_ids(corpus) == ["talk.wav"]
    assert {notice.id: notice.reason for notice in corpus.notices} == {
        "*.png": "30 files hold no sound that FFmpeg can read",
        "noise.bin": "holds no sound that FFmpeg can read",
        "scan.pdf": "holds no sound that FFmpeg can read",
    }
    assert not corpus.problems


def test_a_file_that_the_user_names_is_asked_for_whatever_its_suffix(tmp_path: Path) -> None:
    write_container(tmp_path / "talk.xyz", "flac", "flac")
    assert get_ids(find_jobs(tmp_path / "talk.xyz", tmp_path / "out", intake=Intake.RECORDINGS)) == ["talk.xyz"]
    (tmp_path / "none.xyz").write_bytes(b"nothing to hear")
    corpus = find_jobs(tmp_path / "none.xyz", tmp_path / "out", intake=Intake.RECORDINGS)
    assert "none.xyz is not a recording" in get_reason(corpus, "none.xyz")


def test_media_header_may_name_a_suffix_that_nobody_knows(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.cha", CHAT.format("talk.xyz", "audio"))
    write_container(tmp_path / "in" / "talk.xyz", "flac", "flac")
    assert [job.media for job in find(tmp_path, Intake.PAIRS).jobs] == [tmp_path / "in" / "talk.xyz"]


def test_a_recording_of_a_rare_kind_without_a_transcript_is_listed(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.cha", CHAT.format("a", "audio"))
    for name in ("a.nut", "lonely.nut"):
        write_container(tmp_path / "in" / name, "pcm_s16le", "nut")
    (tmp_path / "in" / "none.nut").write_bytes(b"nothing to hear")
    corpus = find(tmp_path, Intake.PAIRS)
    assert get_ids(corpus) == ["a.cha"]
    assert [(notice.id, notice.reason) for notice in corpus.notices] == [
        ("lonely.nut", "has no transcript; add one of the same name")
    ]


def test_of_two_recordings_the_one_that_has_lost_nothing_is_aligned_and_the_other_named(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "talk.txt")
    write_container(tmp_path / "in" / "talk.mp3", "libmp3lame", "mp3")
    write_container(tmp_path / "in" / "talk.m4a", "alac", "mp4")
    corpus = find(tmp_path, Intake.PAIRS)
    assert [job.media for job in corpus.jobs] == [tmp_path / "in" / "talk.m4a"]
    (notice,) = corpus.notices
    assert notice.id == "talk.mp3" and "talk.m4a, which has its name and has lost nothing" in notice.reason


def test_recordings_of_one_name_are_all_transcribed_under_names_of_their_own(tmp_path: Path) -> None:
    for name in ("deep/talk.wav", "deep/talk.mp3", "deep/talk.xyz", "talk.wav"):
        write_recording(tmp_path / "in" / name)
    corpus = find(tmp_path, names=("chat", "srt"))
    outputs = {job.id: [output.path.as_posix() for output in job.outputs] for job in corpus.jobs}
    assert outputs == {
        "deep/talk.wav": ["deep/talk.wav.cha", "deep/talk.wav.srt"],
        "deep/talk.mp3": ["deep/talk.mp3.cha", "deep/talk.mp3.srt"],
        "deep/talk.xyz": ["deep/talk.xyz.cha", "deep/talk.xyz.srt"],
        "talk.wav": ["talk.cha", "talk.srt"],
    }
    assert not corpus.problems


def make_links(folder: Path) -> None:
    """As git-annex, DataLad and DVC lay corpora out."""
    write_recording(folder / "annex" / "SHA256--1.wav")
    write_recording(folder / "annex" / "more" / "deep.wav")
    (folder / "in").mkdir()
    (folder / "in" / "talk.wav").symlink_to("../annex/SHA256--1.wav")
    (folder / "in" / "folder").symlink_to("../annex/more")
    (folder / "in" / "up").symlink_to("..")


def test_links_are_followed_when_the_user_says_so_and_each_folder_once(tmp_path: Path) -> None:
    make_links(tmp_path)
    refused = find(tmp_path)
    assert not refused.jobs
    assert get_reason(refused, "talk.wav") == (
        "talk.wav is a symbolic link out of the folder; to follow such links, give --follow-links"
    )
    assert {notice.id for notice in refused.notices} == {"folder", "up"}
    followed = find(tmp_path, follow_links=True)
    assert sorted(get_ids(followed)) == ["folder/deep.wav", "talk.wav"]
    assert (followed.problems, followed.notices) == ((), ())
    assert {output.path.as_posix() for job in followed.jobs for output in job.outputs} == {
        "folder/deep.cha",
        "talk.cha",
    }


def test_links_to_transcripts_and_below_media_are_followed_too(tmp_path: Path) -> None:
    make_links(tmp_path)
    write_text(tmp_path / "texts" / "talk.cha", CHAT.format("talk", "audio"))
    (tmp_path / "in" / "talk.wav").rename(tmp_path / "in" / "folder" / "talk.wav")
    (tmp_path / "in" / "talk.cha").symlink_to(tmp_path / "texts" / "talk.cha")
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "talk.wav").symlink_to(tmp_path / "annex" / "SHA256--1.wav")
    corpus = find(tmp_path, Intake.PAIRS, media=tmp_path / "media", follow_links=True)
    assert [job.media for job in corpus.jobs] == [tmp_path / "media" / "talk.wav"]
    assert get_ids(find(tmp_path, Intake.TEXTS, follow_links=True)) == ["talk.cha"]


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    make_links(tmp_path)
    assert get_ids(find_jobs(tmp_path / "in" / "talk.wav", tmp_path / "out", intake=Intake.RECORDINGS)) == ["talk.wav"]


def test_a_link_whose_content_is_elsewhere_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "talk.wav").symlink_to("../.git/annex/objects/x.wav")
    for links in (True, False):
        reason = get_reason(find(tmp_path, follow_links=links), "talk.wav")
        assert "git annex get" in reason if links else "--follow-links" in reason


def test_selection_reaches_the_jobs_and_what_is_not_there_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sound = make_sound(1, RATE)
    write_audio(tmp_path / "in" / "a.wav", np.concatenate([sound, -sound]), RATE, "pcm_s16le")
    for _ in range(2):  # the second time from the cache
        (job,) = find(tmp_path).jobs
        assert job.selection == Selection(None, (1,))
        assert job.warnings == ("a.wav: its channels cancel each other out: channel 1 of 2 used (--channel chooses)",)
        (job,) = find(tmp_path, selection=Selection(channels=(2,))).jobs
        assert (job.selection, job.warnings) == (Selection(None, (2,)), ())
    assert get_reason(find(tmp_path, selection=Selection(channels=(3,))), "a.wav").endswith(
        "a.wav has 2 channels, not 3; check --channel"
    )
    assert get_reason(find(tmp_path, selection=Selection(track=2)), "a.wav").endswith(
        "a.wav has 1 audio track, not 2; check --track"
    )


@pytest.mark.skipif(os.name == "nt", reason="needs pipes")
def test_nothing_but_files_is_asked(tmp_path: Path) -> None:
    write_recording(tmp_path / "in" / "a.wav")
    os.mkfifo(tmp_path / "in" / "pipe.xyz")
    corpus = find(tmp_path)
    assert get_ids(corpus) == ["a.wav"]
    assert [notice.id for notice in corpus.notices] == ["pipe.xyz"]
    with pytest.raises(InputError, match="has no recordings that FFmpeg can read"):
        (tmp_path / "empty").mkdir()
        find_jobs(tmp_path / "empty", tmp_path / "out", intake=Intake.RECORDINGS)
