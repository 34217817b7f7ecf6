"""Plain text in; TextGrid, subtitles, CTM and JSON out."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rustling.srt import SRT
from rustling.textgrid import TextGrid

from prefork.engines.base import InputError
from prefork.engines.text import formats
from prefork.engines.text.document import Character, Document, Timing, Utterance, Word
from prefork.engines.text.formats.textgrid import fill


def make_word(text: str, start: float | None = None, end: float | None = None, characters: bool = False) -> Word:
    if start is None or end is None:
        return Word(text)
    step = (end - start) / len(text)
    spelled = tuple(Character(c, start + i * step, start + (i + 1) * step, 0.75) for i, c in enumerate(text))
    return Word(text, start, end, 0.87654, Timing.ALIGNED, spelled if characters else ())


def make_dialogue(characters: bool = False) -> Document:
    """Two speakers who overlap; an utterance out of order; a word and an utterance without a time."""
    return Document(
        (
            Utterance(
                'he said "hi" .',
                (
                    make_word("he", 1.0, 1.25, characters),
                    make_word("said", 1.3, 1.6, characters),
                    make_word("hi", 1.6, 2.0, characters),
                ),
                "CHI",
                1.0,
                2.0,
            ),
            Utterance(
                "R&B <3 -->", (make_word("R&B", 0.5, 1.1), make_word("<3"), make_word("-->", 1.1, 1.2)), "MOT", 0.5, 1.2
            ),
            Utterance("untimed", (make_word("untimed"),), "MOT"),
        ),
        media="a talk",
        languages=("eng",),
        seconds=3.0,
        warnings=("look",),
    )


def read_tiers(text: str) -> dict[str, list[tuple[float, float, str]]]:
    tiers: dict[str, list[tuple[float, float, str]]] = {}
    for block in re.split(r"    item \[\d+\]:\n", text)[1:]:
        found = re.findall(r'xmin = (\S+)\s+xmax = (\S+)\s+text = "((?:[^"]|"")*)"', block)
        name = re.search(r'name = "((?:[^"]|"")*)"', block)
        assert name is not None
        tiers[name[1]] = [(float(a), float(b), label.replace('""', '"')) for a, b, label in found]
    return tiers


def test_text_has_an_utterance_a_line(tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_bytes("\ufeffHello, world!\r\n\r\n  \u2014  \r\nnaïve café\r\n".encode())
    document = formats.read(path)
    assert [[word.text for word in u.words] for u in document.utterances] == [["Hello", "world"], ["naïve", "café"]]
    assert [utterance.text for utterance in document.utterances] == ["Hello, world!", "naïve café"]
    assert document.media == "talk"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "has no words"),
        ("a.lab", b"-- ...\n\n", "has no words"),
        ("a.txt", "caf\xe9".encode("latin-1"), "is not UTF-8 (line 1, byte 3); save it as UTF-8"),
        ("a.txt", "hello".encode("utf-16"), "is not UTF-8 (line 1, byte 0); save it as UTF-8"),
        ("a.docx", b"", "not a transcript that can be read; use one of .cha, .txt, .lab"),
        ("a", b"", "not a transcript that can be read; use one of .cha, .txt, .lab"),
    ],
)
def test_unreadable_transcript_names_reason_and_remedy(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        formats.read(tmp_path / name)
    assert str(error.value).startswith(f"{name}: ")


def test_what_would_be_waited_for_or_take_all_memory_is_no_transcript(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.cha")
    with pytest.raises(InputError, match="is not a file"):
        formats.read(tmp_path / "pipe.cha")
    with (tmp_path / "large.txt").open("wb") as file:
        os.ftruncate(file.fileno(), 10_000_000_000)  # takes no room on the disk
    with pytest.raises(InputError, match="has 10,000 MB, and no transcript has more than 64 MB; split it"):
        formats.read(tmp_path / "large.txt")


@pytest.mark.parametrize("join", [" ", "\n\t"])
def test_groups_nested_as_nobody_nests_them_are_refused_before_they_are_parsed(tmp_path: Path, join: str) -> None:
    head = "@UTF8\n@Begin\n@Languages:\teng\n@Participants:\tCHI Child\n@ID:\teng|x|CHI|||||Child|||\n"
    for depth, refused in ((20, False), (20_000, True)):
        groups = join.join(["<" * depth + "a", *["[//] >"] * (depth - 1), "[//]"])
        (tmp_path / "a.cha").write_text(f"{head}*CHI:\tb {groups} .\n@End\n")
        try:
            formats.read(tmp_path / "a.cha")
        except InputError as error:
            assert ("nested more than 50 deep" in str(error)) == refused
        else:
            assert not refused


def test_missing_transcript_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        formats.read(tmp_path / "gone.cha")


def test_suffix_is_known_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("hello")
    assert formats.read(tmp_path / "A.TXT").utterances[0].text == "hello"


@pytest.mark.parametrize("name", ["text", "praat", ""])
def test_unknown_output_format_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="there are chat, conllu, textgrid, srt, vtt, ctm, rttm, json"):
        formats.render(make_dialogue(), name)


def test_outputs_have_the_usual_suffixes() -> None:
    suffixes = [formats.find_suffix(name) for name in formats.OUTPUTS]
    assert suffixes == [".cha", ".conllu", ".TextGrid", ".srt", ".vtt", ".ctm", ".rttm", ".json"]


def test_textgrid_has_tiers_of_utterances_words_and_characters_for_each_speaker() -> None:
    text = formats.render(make_dialogue(characters=True), "textgrid")
    tiers = read_tiers(text)
    assert list(tiers) == ["CHI", "CHI words", "CHI characters", "MOT", "MOT words"]
    assert tiers["CHI"] == [(0, 1, ""), (1, 2, 'he said "hi" .'), (2, 3, "")]
    words = [(0, 1, ""), (1, 1.25, "he"), (1.25, 1.3, ""), (1.3, 1.6, "said"), (1.6, 2, "hi"), (2, 3, "")]
    assert tiers["CHI words"] == words
    assert [label for *_, label in tiers["CHI characters"]] == ["", "h", "e", "", "s", "a", "i", "d", "h", "i", ""]
    assert tiers["MOT"] == [(0, 0.5, ""), (0.5, 1.2, "R&B <3 -->"), (1.2, 3, "")]


def test_textgrid_is_read_again_by_rustling() -> None:
    text = formats.render(make_dialogue(), "textgrid")
    grid = TextGrid.from_strs([text], parallel=False)
    assert grid.to_strs()[0].split() == text.split()


TIME = st.none() | st.floats(0, 20)


@settings(deadline=None)
@given(st.lists(st.tuples(TIME, TIME), max_size=12))
def test_praat_gets_neither_holes_nor_overlaps_nor_empty_intervals(
    times: list[tuple[float | None, float | None]],
) -> None:
    filled = list(fill([(start, end, "x") for start, end in times], 20.0))
    assert filled[0][0] == 0
    assert filled[-1][1] == 20_000
    assert all(start < end for start, end, _ in filled)
    assert all(before[1] == after[0] for before, after in pairwise(filled))


def test_srt_is_in_the_order_of_time_and_names_the_speakers() -> None:
    text = formats.render(make_dialogue(), "srt")
    assert text == (
        "1\n00:00:00,500 --> 00:00:01,200\nMOT: R&B <3 -->\n\n2\n00:00:01,000 --> 00:00:02,000\nCHI: he said hi\n"
    )
    assert len(SRT.from_strs([text], parallel=False).to_strs()) == 1


def test_srt_of_one_speaker_names_nobody() -> None:
    document = Document((Utterance("hello", (make_word("hello", 3599.9, 3600.5),), None, 3599.9, 3600.5),))
    assert formats.render(document, "srt").startswith("1\n00:59:59,900 --> 01:00:00,500\nhello\n")


def test_vtt_escapes_markup_and_has_the_words_times() -> None:
    assert formats.render(make_dialogue(), "vtt") == (
        "WEBVTT\n\n"
        "1\n00:00:00.500 --> 00:00:01.200\n<v MOT>R&amp;B &lt;3 <00:00:01.100>--&gt;\n\n"
        "2\n00:00:01.000 --> 00:00:02.000\n<v CHI>he <00:00:01.300>said <00:00:01.600>hi\n"
    )


def test_ctm_is_in_the_order_of_time_without_untimed_words() -> None:
    assert formats.render(make_dialogue(), "ctm") == (
        "a_talk 1 0.500 0.600 R&B 0.8765\n"
        "a_talk 1 1.000 0.250 he 0.8765\n"
        "a_talk 1 1.100 0.100 --> 0.8765\n"
        "a_talk 1 1.300 0.300 said 0.8765\n"
        "a_talk 1 1.600 0.400 hi 0.8765\n"
    )


def test_phones_have_a_tier_and_a_list_of_their_own() -> None:
    phones = (Character("HH", 1.0, 1.1, 0.75), Character("IY", 1.1, 1.25, 0.5))
    word = dataclasses.replace(make_word("he", 1.0, 1.25), phones=phones)
    document = Document((Utterance("he .", (word,), "CHI", 1.0, 1.25),), seconds=2.0)
    tiers = read_tiers(formats.render(document, "textgrid"))
    assert tiers["CHI phones"] == [(0.0, 1.0, ""), (1.0, 1.1, "HH"), (1.1, 1.25, "IY"), (1.25, 2.0, "")]
    (described,) = json.loads(formats.render(document, "json"))["utterances"][0]["words"]
    assert described["phones"][1] == {"text": "IY", "start": 1.1, "end": 1.25, "score": 0.5}
    ended = word.end_by(1.15)
    assert [(phone.start, phone.end) for phone in ended.phones] == [(1.0, 1.1), (1.1, 1.15)]


def test_json_says_everything_and_null_for_what_is_not_known() -> None:
    content = json.loads(formats.render(make_dialogue(characters=True), "json"))
    assert list(content) == ["media", "seconds", "languages", "warnings", "utterances"]
    assert (content["media"], content["seconds"], content["warnings"]) == ("a talk", 3.0, ["look"])
    chi, mot, untimed = content["utterances"]
    he = chi["words"][0]
    assert (he["text"], he["start"], he["end"], he["score"], he["timing"]) == ("he", 1.0, 1.25, 0.8765, "aligned")
    assert he["characters"][1] == {"text": "e", "start": 1.125, "end": 1.25, "score": 0.75}
    assert mot["words"][1] == {
        "text": "<3", "start": None, "end": None, "score": None, "timing": "none", "characters": [], "phones": []
    }  # fmt: skip
    assert (untimed["start"], untimed["end"]) == (None, None)


@pytest.mark.parametrize("name", formats.OUTPUTS)
def test_same_document_gives_the_same_text(name: str) -> None:
    assert formats.render(make_dialogue(True), name) == formats.render(make_dialogue(True), name)


@pytest.mark.parametrize("name", formats.OUTPUTS)
def test_document_without_any_time_can_be_written(name: str) -> None:
    document = Document((Utterance("hello", (make_word("hello"),)),), seconds=2.0)
    assert "\x15" not in formats.render(document, name)


def test_formats_start_no_threads_and_leave_torch_alone() -> None:
    """Both would be inherited, broken, by every forked worker."""
    script = """if True:
        import os, sys
        from prefork.engines.text import formats
        from prefork.engines.text.document import Document, Utterance, Word
        document = Document((Utterance("hi", (Word("hi", 0.0, 1.0),), None, 0.0, 1.0),), seconds=1.0)
        for name in formats.OUTPUTS:
            formats.render(document, name)
        print(len(os.listdir("/proc/self/task")), "torch" in sys.modules)
    """
    if not Path("/proc/self/task").is_dir():
        pytest.skip("counts threads in /proc, which is Linux's")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


@pytest.mark.parametrize(("name", "kind"), [("talk.MP4", "video"), ("talk.wav", "audio")])
def test_a_recording_with_pictures_is_told_from_one_without(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    document = formats.open_document(path, path)
    assert (document.media, document.utterances) == ("talk", ())
    assert f"@Media:\ttalk, {kind}" in formats.render(document, "chat")
    (tmp_path / "talk.txt").write_text("hello\n")
    assert formats.open_document(tmp_path / "talk.txt", path).video == (kind == "video")
