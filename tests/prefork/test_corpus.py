"""From folders to jobs: real files, recordings of a few milliseconds."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
import wave
from pathlib import Path

import pytest

from prefork.engines.audio.reader import Recording, Selection, probe
from prefork.engines.base import InputError, Output
from prefork.platform_matrix.cache import Cache
from prefork.pool.pipeline import Intake
from prefork.run.corpus import Corpus, find_jobs, find_languages

CHAT = "@UTF8\n@Begin\n@Languages:\teng\n@Media:\t{}, {}\n*CHI:\tgo .\n@End\n"


def write_recording(path: Path, seconds: float = 0.1) -> Path:
    """A WAV file, whatever its suffix: FFmpeg looks at the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream, wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(2 * round(8000 * seconds)))
    return path


def write_text(path: Path, content: str = "go\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def write_pair(folder: Path, name: str, seconds: float = 0.1) -> None:
    write_text(folder / f"{name}.txt")
    write_recording(folder / f"{name}.wav", seconds)


def find(tmp_path: Path, *formats: str, media: Path | None = None) -> Corpus:
    return find_jobs(tmp_path / "in", tmp_path / "out", formats, media)


def get_ids(corpus: Corpus) -> list[str]:
    return [job.id for job in corpus.jobs]


def get_reason(corpus: Corpus, id: str) -> str:
    [reason] = [problem.reason for problem in corpus.problems if problem.id == id]
    return reason


def test_tree_goes_in_and_the_same_tree_comes_out_longest_first(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "short", 0.1)
    write_pair(tmp_path / "in" / "b c" / "é", "long", 0.3)
    write_pair(tmp_path / "in" / "b c", "also short", 0.1)
    corpus = find(tmp_path, "chat", "textgrid", "chat")
    assert get_ids(corpus) == ["b c/é/long.txt", "b c/also short.txt", "short.txt"]
    job = corpus.jobs[0]
    assert job.source == tmp_path / "in/b c/é/long.txt"
    assert job.media == tmp_path / "in/b c/é/long.wav"
    assert job.outputs == (
        Output("chat", Path("b c/é/long.cha")),
        Output("textgrid", Path("b c/é/long.TextGrid")),
    )
    assert job.seconds == pytest.approx(0.3)
    assert (corpus.problems, corpus.notices) == ((), ())


def test_single_transcript_is_a_corpus_of_one(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a")
    write_pair(tmp_path / "in", "b")
    write_recording(tmp_path / "in" / "lonely.wav")
    corpus = find_jobs(tmp_path / "in" / "a.txt", tmp_path / "out")
    assert get_ids(corpus) == ["a.txt"]
    assert corpus.jobs[0].outputs == (Output("chat", Path("a.cha")),)
    assert (corpus.problems, corpus.notices) == ((), ())


def test_treebank_beside_a_recording_is_not_aligned(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "talk")
    write_text(tmp_path / "in" / "talk.conllu")
    corpus = find(tmp_path)
    assert get_ids(corpus) == ["talk.txt"]
    assert (corpus.problems, corpus.notices) == ((), ())
    with pytest.raises(InputError, match=r"talk\.conllu: no transcript; .* ends in \.cha, \.txt, \.lab$"):
        find_jobs(tmp_path / "in" / "talk.conllu", tmp_path / "out")


def test_single_transcript_does_not_walk_the_folders_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.txt")
    write_recording(tmp_path / "in" / "below" / "a.wav")
    corpus = find_jobs(tmp_path / "in" / "a.txt", tmp_path / "out")
    assert "no recording named 'a' beside it" in get_reason(corpus, "a.txt")


@pytest.mark.parametrize("name", ["talk", "talk.wav", "TALK.final", "2.5", '"talk two"'])
def test_recording_is_the_one_that_the_media_header_names(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / "in" / "a.cha", "\ufeff" + CHAT.format(name, "audio").replace("\n", "\r\n"))
    bare = name.strip('"').removesuffix(".wav")
    write_recording(tmp_path / "in" / f"{bare}.wav")
    write_recording(tmp_path / "in" / "a.wav")
    corpus = find(tmp_path)
    assert [job.media for job in corpus.jobs] == [tmp_path / "in" / f"{bare}.wav"]
    assert [notice.id for notice in corpus.notices] == ["a.wav"]


def test_suffix_that_is_none_is_part_of_the_name(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.cha", CHAT.format("take.2", "audio"))
    write_recording(tmp_path / "in" / "take.wav")
    assert "no recording named 'take.2'" in get_reason(find(tmp_path), "a.cha")


def test_accents_are_the_same_however_they_are_composed(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.cha", CHAT.format(unicodedata.normalize("NFD", "café"), "audio"))
    write_recording(tmp_path / "in" / (unicodedata.normalize("NFC", "café") + ".wav"))
    assert get_ids(find(tmp_path)) == ["a.cha"]


@pytest.mark.parametrize(("kind", "suffix"), [("audio", ".wav"), ("video", ".mp4")])
def test_type_in_the_media_header_chooses_between_audio_and_video(tmp_path: Path, kind: str, suffix: str) -> None:
    write_text(tmp_path / "in" / "a.cha", CHAT.format("a", kind))
    for each in (".wav", ".mp4"):
        write_recording(tmp_path / "in" / f"a{each}")
    assert [job.media for job in find(tmp_path).jobs] == [tmp_path / "in" / f"a{suffix}"]


def test_two_media_are_listed_with_the_remedy(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.cha", CHAT.format("a", "audio"))
    paths = [write_recording(tmp_path / "in" / name) for name in ("a.flac", "a.wav")]
    reason = get_reason(find(tmp_path), "a.cha")
    assert all(str(path) in reason for path in paths)
    assert "keep one" in reason


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "https://x.org/a", "sub\\a", ".."])
def test_path_in_the_media_header_is_refused(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / "in" / "a.cha", CHAT.format(name, "audio"))
    write_recording(tmp_path / "in" / "a.wav")
    corpus = find(tmp_path)
    assert not corpus.jobs
    assert "--media DIR" in get_reason(corpus, "a.cha")


@pytest.mark.parametrize("place", ["sub", "", "any/where"])
def test_recordings_are_found_in_the_media_folder(tmp_path: Path, place: str) -> None:
    write_text(tmp_path / "in" / "sub" / "a.txt")
    recording = write_recording(tmp_path / "media" / place / "a.wav")
    corpus = find(tmp_path, media=tmp_path / "media")
    assert [job.media for job in corpus.jobs] == [recording]


def test_nearest_place_wins_and_equally_near_ones_are_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "sub" / "a.txt")
    write_text(tmp_path / "in" / "b.txt")
    near = write_recording(tmp_path / "media" / "sub" / "a.wav")
    for path in ("a.wav", "x/a.wav", "x/b.wav", "y/b.wav"):
        write_recording(tmp_path / "media" / path)
    corpus = find(tmp_path, media=tmp_path / "media")
    assert [job.media for job in corpus.jobs] == [near]
    assert "2 recordings match it" in get_reason(corpus, "b.txt")
    write_recording(tmp_path / "in" / "b.wav")
    assert "b.txt" in get_ids(find(tmp_path, media=tmp_path / "media"))


def test_chat_without_recording_is_a_problem_and_what_else_is_left_over_a_notice(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "good")
    write_text(tmp_path / "in" / "mute.cha", CHAT.format("mute", "audio"))
    write_text(tmp_path / "in" / "notes.txt")
    write_recording(tmp_path / "in" / "wordless.wav")
    corpus = find(tmp_path)
    assert get_ids(corpus) == ["good.txt"]
    assert [problem.id for problem in corpus.problems] == ["mute.cha"]
    assert get_reason(corpus, "mute.cha") == "no recording named 'mute' beside it; put it there, or give --media DIR"
    assert [(notice.id, notice.reason) for notice in corpus.notices] == [
        ("notes.txt", "no recording named 'notes' beside it; put it there, or give --media DIR"),
        ("wordless.wav", "has no transcript; add one of the same name"),
    ]


def test_texts_without_any_recording_are_refused_with_the_remedy(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.txt")
    write_text(tmp_path / "in" / "b.lab")
    with pytest.raises(InputError, match=r"no recording belongs to any of its transcripts: a.txt: .*give --media DIR"):
        find(tmp_path)
    with pytest.raises(InputError, match=r"no recording belongs to any .*beside it or below .*media; put it there$"):
        find(tmp_path, media=write_recording(tmp_path / "media" / "c.wav").parent)


def test_media_header_that_is_not_utf_8_names_the_remedy(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.cha").write_bytes(CHAT.format("café", "audio").encode("latin-1"))
    assert get_reason(find(tmp_path), "a.cha") == "its @Media is not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize("status", ["missing", "unlinked", "notrans"])
def test_status_in_the_media_header_does_not_keep_a_recording_that_is_there_from_use(
    tmp_path: Path, status: str
) -> None:
    write_text(tmp_path / "in" / "a.cha", CHAT.format("a", f"audio, {status}"))
    assert ("@Media says that it is missing" in get_reason(find(tmp_path), "a.cha")) == (status == "missing")
    write_recording(tmp_path / "in" / "a.wav")
    assert get_ids(find(tmp_path)) == ["a.cha"]


def test_recording_beside_the_chosen_one_is_no_leftover(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.cha", CHAT.format("a", "audio"))
    for suffix in (".wav", ".mp4"):
        write_recording(tmp_path / "in" / f"a{suffix}")
    assert find(tmp_path).notices == ()


def test_suffixes_are_known_in_any_case(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "A.CHA", CHAT.format("a.Wav", "audio"))
    write_recording(tmp_path / "in" / "a.WAV")
    job = find(tmp_path).jobs[0]
    assert (job.id, job.media) == ("A.CHA", tmp_path / "in" / "a.WAV")
    assert job.outputs == (Output("chat", Path("A.cha")),)


@pytest.mark.parametrize("content", [b"", b"no audio at all", b"RIFF\x24\0\0\0WAVEfmt "])
def test_recording_that_is_none_costs_only_its_own_job(tmp_path: Path, content: bytes) -> None:
    write_pair(tmp_path / "in", "good")
    write_pair(tmp_path / "in", "bad")
    (tmp_path / "in" / "bad.wav").write_bytes(content)
    corpus = find(tmp_path)
    assert get_ids(corpus) == ["good.txt"]
    assert "bad.wav" in get_reason(corpus, "bad.txt")
    assert not corpus.notices


def test_two_transcripts_for_one_output_are_told_apart(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a")
    write_text(tmp_path / "in" / "a.cha", CHAT.format("a", "audio"))
    corpus = find(tmp_path)
    assert get_ids(corpus) == ["a.cha"]
    assert get_reason(corpus, "a.txt") == "its output a.cha is also the output of a.cha; rename one of them"


def test_outputs_in_the_input_folder_are_no_inputs_of_the_next_run(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a")
    write_pair(tmp_path / "in" / "done", "a")
    corpus = find_jobs(tmp_path / "in", tmp_path / "in" / "done")
    assert get_ids(corpus) == ["a.txt"]


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    for folder, name in (("in", "a"), ("in", ".b"), ("in/.prefork", "c")):
        write_pair(tmp_path / folder, name)
    corpus = find(tmp_path)
    assert get_ids(corpus) == ["a.txt"]
    assert not corpus.notices


def test_links_out_of_the_folder_are_not_followed_unless_the_user_says_so(tmp_path: Path) -> None:
    write_pair(tmp_path / "secret", "s")
    write_pair(tmp_path / "in", "a")
    write_text(tmp_path / "in" / "m.txt")
    (tmp_path / "in" / "t.txt").symlink_to(tmp_path / "secret" / "s.txt")
    (tmp_path / "in" / "m.wav").symlink_to(tmp_path / "secret" / "s.wav")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "secret")
    corpus = find(tmp_path)
    assert get_ids(corpus) == ["a.txt"]
    assert "symbolic link" in get_reason(corpus, "t.txt")
    assert "give --follow-links" in get_reason(corpus, "m.txt")
    assert "folder" in [notice.id for notice in corpus.notices]


def test_links_out_of_the_media_folder_are_not_followed_either(tmp_path: Path) -> None:
    recording = write_recording(tmp_path / "secret" / "s.wav")
    write_text(tmp_path / "in" / "a.txt")
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.wav").symlink_to(recording)
    corpus = find(tmp_path, media=tmp_path / "media")
    assert "symbolic link" in get_reason(corpus, "a.txt")


def test_links_within_the_folder_are_files_like_others(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a")
    for suffix in (".txt", ".wav"):
        (tmp_path / "in" / f"b{suffix}").symlink_to(f"a{suffix}")
    assert sorted(get_ids(find(tmp_path))) == ["a.txt", "b.txt"]


def test_broken_and_circular_links_and_pipes_are_problems(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a")
    (tmp_path / "in" / "broken.txt").symlink_to("gone.txt")
    (tmp_path / "in" / "circle.txt").symlink_to("circle.txt")
    os.mkfifo(tmp_path / "in" / "pipe.cha")
    os.mkfifo(tmp_path / "in" / "pipe.wav")
    corpus = find(tmp_path)
    assert get_ids(corpus) == ["a.txt"]
    assert [problem.id for problem in corpus.problems] == ["broken.txt", "circle.txt", "pipe.cha"]
    assert all("regular file" in problem.reason for problem in corpus.problems)


@pytest.mark.parametrize("name", [b"two\nlines", b"tab\tquote\"'", b"caf\xe9", "ünï 你好".encode(), b"-dash", b"a.b.c"])
def test_odd_names_work(tmp_path: Path, name: bytes) -> None:
    stem = os.fsdecode(name)
    write_pair(tmp_path / "in", stem)
    job = find(tmp_path).jobs[0]
    assert os.fsencode(job.id) == name + b".txt"
    assert os.fsencode(job.outputs[0].path) == name + b".cha"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
def test_what_may_not_be_read_is_a_problem(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a")
    write_pair(tmp_path / "in" / "locked", "b")
    write_pair(tmp_path / "in", "c")
    write_text(tmp_path / "in" / "c.cha", CHAT.format("c", "audio")).chmod(0)
    (tmp_path / "in" / "locked").chmod(0)
    try:
        corpus = find(tmp_path)
    finally:
        (tmp_path / "in" / "locked").chmod(0o700)
    assert sorted(problem.id for problem in corpus.problems) == ["c.cha", "locked"]
    assert sorted(get_ids(corpus)) == ["a.txt", "c.txt"]
    (tmp_path / "in").chmod(0)
    try:
        with pytest.raises(InputError, match="change its permissions"):
            find(tmp_path)
    finally:
        (tmp_path / "in").chmod(0o700)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("gone", "out", "no such file or folder"),
        ("gone\0", "out", "no such file or folder"),
        ("empty", "out", "has no transcripts; their names must end in .cha"),
        ("in", "in", "is IN itself"),
        ("in", "link", "is IN itself"),
        ("in/sub/../", "in", "is IN itself"),
        ("in/a.txt", "in", "is IN itself"),
        ("in", ".", "contains IN"),
        ("in/a.wav", "out", "no transcript; give a folder, or a file"),
        ("in", "in/a.txt", "is a file; OUT must be a folder"),
    ],
)
def test_impossible_places_are_refused_at_once(tmp_path: Path, source: str, target: str, reason: str) -> None:
    write_pair(tmp_path / "in", "a")
    (tmp_path / "in" / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(InputError, match=reason):
        find_jobs(tmp_path / source, tmp_path / target)


def test_missing_media_folder_and_unknown_format_are_refused_at_once(tmp_path: Path) -> None:
    write_pair(tmp_path / "in", "a")
    with pytest.raises(InputError, match="check --media"):
        find(tmp_path, media=tmp_path / "gone")
    with pytest.raises(InputError, match="there are chat, conllu"):
        find(tmp_path, "praat")


def test_recordings_alone_are_what_goes_in_and_transcripts_stay_where_they_are(tmp_path: Path) -> None:
    write_pair(tmp_path / "in" / "deep", "long", 0.3)
    write_recording(tmp_path / "in" / "short.wav")
    write_recording(tmp_path / "in" / "out" / "old.wav")
    (tmp_path / "in" / "broken.wav").write_bytes(b"no sound")
    corpus = find_jobs(tmp_path / "in", tmp_path / "in" / "out", ("chat", "rttm"), intake=Intake.RECORDINGS)
    assert get_ids(corpus) == ["deep/long.wav", "short.wav"]
    job = corpus.jobs[0]
    assert job.source == job.media == tmp_path / "in" / "deep" / "long.wav"
    assert [output.path.as_posix() for output in job.outputs] == ["deep/long.cha", "deep/long.rttm"]
    assert [problem.id for problem in corpus.problems] == ["broken.wav"]
    assert corpus.notices == ()


def test_a_single_recording_is_a_corpus_of_one(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        write_recording(tmp_path / name)
    assert get_ids(find_jobs(tmp_path / "b.wav", tmp_path / "out", intake=Intake.RECORDINGS)) == ["b.wav"]


@pytest.mark.parametrize(
    ("name", "reason"), [("a.cha", "no recording; give"), ("empty", "has no recordings"), ("gone", "no such file")]
)
def test_what_holds_no_recording_is_refused_at_once(tmp_path: Path, name: str, reason: str) -> None:
    write_text(tmp_path / "a.cha")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=reason):
        find_jobs(tmp_path / name, tmp_path / "out", intake=Intake.RECORDINGS)


def test_texts_come_out_as_what_they_are_and_notes_about_them_stay(tmp_path: Path) -> None:
    for name in ("a.cha", "sub/b.txt", "c.conllu", "README.TXT", "d.wav"):
        write_text(tmp_path / "in" / name, "something to say\n" * (1 if name == "a.cha" else 2))
    corpus = find_jobs(tmp_path / "in", tmp_path / "out", intake=Intake.TEXTS)
    outputs = {job.id: [(output.format, output.path.as_posix()) for output in job.outputs] for job in corpus.jobs}
    assert outputs == {
        "a.cha": [("chat", "a.cha")],
        "c.conllu": [("conllu", "c.conllu")],
        "sub/b.txt": [("conllu", "sub/b.conllu")],
    }
    assert corpus.jobs[-1].id == "a.cha"  # the shortest
    assert [notice.id for notice in corpus.notices] == ["README.TXT"]
    assert not corpus.problems
    single = find_jobs(tmp_path / "in" / "README.TXT", tmp_path / "out", ["json"], intake=Intake.TEXTS)
    assert [output.path.as_posix() for job in single.jobs for output in job.outputs] == ["README.json"]


def test_languages_are_those_of_the_headers_and_an_empty_one_where_none_says_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_text(folder / "a.cha", "@UTF8\n@Begin\n@Languages:\tdeu, tur\n@End\n")
    write_text(folder / "sub" / "b.cha", "@UTF8\r\n@Begin\r\n@Languages:\tspa\r\n@End\r\n")
    write_text(folder / "README.txt")
    write_text(folder / "out" / "a.conllu")
    os.mkfifo(folder / "pipe.cha")
    assert find_languages(folder, folder / "out") == ("deu", "tur", "spa")
    assert find_languages(folder / "a.cha") == ("deu", "tur")
    write_text(folder / "c.txt")
    assert find_languages(folder, folder / "out") == ("deu", "tur", "", "spa")
    assert find_languages(folder / "c.txt") == ("",)
    assert find_languages(folder / "pipe.cha") == find_languages(folder / "none.cha") == ()


def test_finding_jobs_leaves_torch_alone() -> None:
    script = "import sys, prefork.run.corpus; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_recording_is_opened_again_only_if_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def look(path: Path, selection: Selection) -> Recording:
        opened.append(path.name)
        return probe(path, selection)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("prefork.run.recordings.probe", look)
    folder = tmp_path / "in"
    for name in ("a", "b", "c"):
        write_pair(folder, name)
    (folder / "c.wav").write_bytes(b"no sound")
    first = find_jobs(folder, None)
    assert sorted(opened) == ["a.wav", "b.wav", "c.wav"]
    opened.clear()
    assert find_jobs(folder, None) == first
    assert opened == ["c.wav"]  # what is refused is looked at again
    opened.clear()
    write_recording(folder / "a.wav", 0.3)
    assert {job.id: job.seconds for job in find_jobs(folder, None).jobs} == {"a.txt": 0.3, "b.txt": 0.1}
    assert sorted(opened) == ["a.wav", "c.wav"]


@pytest.mark.parametrize("entry", [None, [], ["x"] * 5, [-1.0, 8000, 1, "pcm_s16le", 0.0], [1e999, 8000, 1, "x", 0.0]])
def test_what_is_kept_of_a_recording_is_not_believed_whatever_it_is(
    entry: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_pair(tmp_path / "in", "a")
    find_jobs(tmp_path / "in", None)
    cache = Cache("recordings.json", 10)
    (name,) = cache.load_all()
    cache.store(name, entry)
    assert [job.seconds for job in find_jobs(tmp_path / "in", None).jobs] == [0.1]
