"""Transcripts that went wrong once, through the commands as users run them. ../shared/cases/README.md says what is
right for each; tests/engines/test_valid_chat.py and test_normalization.py have more of every kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefork.engines.text import formats
from prefork.engines.text.document import Document
from tests.prefork.command import run

TAGGED = ("ca-line-without-words", "fused-terminator", "unchanged-main-line", "refused-though-valid")
ALIGNED = (
    "without-media",
    "wor-terminator",
    "inner-bullets",
    "no-words",
    "text-with-numbers",
    "suffixes",
    "wide-bullet",
)


@dataclass(frozen=True)
class Done:
    """What a command made of some cases. warnings: by file."""

    before: Path
    after: Path
    warnings: Mapping[str, list[str]]

    def read(self, name: str) -> list[str]:
        return (self.after / name).read_text(encoding="utf-8").replace("\x15", "|").splitlines()

    def parse(self, name: str) -> Document:
        return formats.read(self.after / name)

    def list_added(self, name: str) -> list[str]:
        """Lines that are new. Fails if an old one is gone."""
        old = (self.before / name).read_text(encoding="utf-8").replace("\x15", "|").splitlines()
        new = self.read(name)
        places = iter(enumerate(new))
        kept = {next(place for place, other in places if other == line) for line in old}
        return [line for place, line in enumerate(new) if place not in kept]


def _run(command: str, names: tuple[str, ...], shared: Path, folder: Path) -> Done:
    for name in names:
        shutil.copytree(shared / "cases" / "transcripts" / name, folder / "in" / name)
    done = run(command, folder / "in", folder / "out", "--json", "--workers", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Done(folder / "in", folder / "out", summary["warnings"])


@pytest.fixture(scope="module")
def tagged(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return _run("morphotag", TAGGED, shared, tmp_path_factory.mktemp("tagged"))


@pytest.fixture(scope="module")
def aligned(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return _run("align", ALIGNED, shared, tmp_path_factory.mktemp("aligned"))


def test_a_line_without_words_and_terminator_stays_and_the_others_are_tagged(tagged: Done) -> None:
    mor, gra = tagged.list_added("ca-line-without-words/a.cha")
    assert mor.startswith("%mor:\tintj|hello ") and mor.endswith(" .") and gra.startswith("%gra:\t1|")


def test_a_terminator_that_touches_a_word_ends_the_tier(tagged: Done) -> None:
    lines = tagged.read("fused-terminator/a.cha")
    assert [line.split()[-1] for line in lines if line.startswith("%mor")] == ["+...", "!"]
    assert [line for line in lines if line.startswith("*")] == ["*CHI:\ttrying to+...", "*CHI:\tI need it!"]


def test_only_what_was_asked_for_is_written(tagged: Done) -> None:
    assert [line[:5] for line in tagged.list_added("unchanged-main-line/a.cha")] == ["%mor:", "%gra:"]


def test_no_file_is_lost_for_what_does_not_matter(tagged: Done) -> None:
    assert [line[:5] for line in tagged.list_added("refused-though-valid/age.cha")] == ["%mor:", "%gra:"]
    mor, _ = tagged.list_added("refused-though-valid/question-exclamation.cha")
    assert mor.endswith(" +!?")
    assert list(tagged.warnings) == ["refused-though-valid/age.cha"]
    assert "1;8.13" in tagged.warnings["refused-though-valid/age.cha"][0]


@pytest.mark.parametrize("name", ["without-media/a.cha", "suffixes/a.cha"])
def test_times_bring_the_media_header(aligned: Done, name: str) -> None:
    lines = aligned.read(name)
    assert lines[6] == "@Media:\ta, audio" and lines[5].startswith("@ID") and lines[7].startswith("*CHI")
    assert [len(u.words) for u in aligned.parse(name).utterances] == [4, 4]
    assert [line.split()[-1] for line in lines if line.startswith("%wor")] == [".", "?"]


def test_wor_always_has_a_terminator(aligned: Done) -> None:
    lines = aligned.read("wor-terminator/a.cha")
    assert [line.split()[-1] for line in lines if line.startswith("%wor")] == [".", "."]
    assert "@Media:\ta, audio" in lines


def test_bullets_between_words_agree_with_the_words(aligned: Done) -> None:
    main, wor = aligned.read("inner-bullets/a.cha")[7:9]
    times = [tuple(map(int, part.split("_"))) for part in wor.split("|")[1::2]]
    assert main == f"*CHI:\thello there |{times[0][0]}_{times[1][1]}| my friend . |{times[0][0]}_{times[3][1]}|"


def test_a_transcript_without_words_comes_through(aligned: Done) -> None:
    assert aligned.list_added("no-words/a.cha") == []
    assert aligned.warnings["no-words/a.cha"] == ["has no words; it stays as it is"]


def test_numbers_of_a_text_are_words_with_times(aligned: Done) -> None:
    lines = aligned.read("text-with-numbers/a.cha")
    mains = [line.partition("\t")[2].partition(" .")[0] for line in lines if line.startswith("*")]
    assert mains == ["Matt said three point five percent or forty three thousand dollars", "how are you today"]


def test_a_wide_bullet_does_not_smear_its_words(aligned: Done) -> None:
    (wor,) = (line for line in aligned.read("wide-bullet/wide60.cha") if line.startswith("%wor"))
    starts = [int(part.split("_")[0]) / 1000 for part in wor.split("|")[1::2]]
    assert starts == pytest.approx([50.22, 50.5, 50.7, 50.9], abs=0.1)
    assert int(wor.split("|")[-2].split("_")[1]) / 1000 == pytest.approx(51.45, abs=0.2)  # the voice ends at 51.3
