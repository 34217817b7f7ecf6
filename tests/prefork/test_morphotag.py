"""The command `prefork morphotag` as a user runs it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rustling.chat import CHAT

from prefork.engines.stanza.models import EMBEDDED
from prefork.fingerprint import OUTPUTS
from tests.prefork.command import read_outputs, run

HEAD = "@UTF8\n@Begin\n@Languages:\t{}\n@Participants:\tCHI Target_Child, MOT Mother\n"
IDS = "@ID:\teng|x|CHI|||||Target_Child|||\n@ID:\teng|x|MOT|||||Mother|||\n"
TALK = (
    "*CHI:\tI want a cookie .",
    "*MOT:\tyou don't want <the> [/] the ice+cream , do you ?",
    "%com:\tpoints at it",
    "*CHI:\t&-um (be)cause he gonna [: going to] eat it xxx .",
    "*MOT:\tmore \x151000_2000\x15 juice . \x151000_3000\x15",
)


def write_talk(folder: Path, name: str, *lines: str, languages: str = "eng") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.cha"
    path.write_text("\n".join([HEAD.format(languages) + IDS.rstrip(), *(lines or TALK), "@End", ""]))
    return path


# What prefork 0.1.0 wrote into its journal for stanza: it said neither its version nor torch's.
OLD = (
    '{"outputs": [["chat", "talk.cha"]], "stages": [{"engine": "stanza", "keep": false, "language": "eng", "models": '
    '{"eng": {"code": "en", "package": "default", "sha256": '
    '"5859e4aacf40b6762d9deb3369798f433785756c260c0126a0692436b5b3b5e0"}}, "retokenize": false, "stanza": "1.15.0"}]}'
)


def change_fingerprint(out: Path, change: Callable[[str], str]) -> None:
    """As if something else had made what is there."""
    with sqlite3.connect(out / ".prefork" / "journal.sqlite") as journal:
        for job, known in journal.execute("SELECT id, fingerprint FROM jobs").fetchall():
            made = change(known)
            assert made != known
            journal.execute("UPDATE jobs SET fingerprint = ? WHERE id = ?", (made, job))
    journal.close()


def strip_tiers(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(("%mor:", "%gra:")))


@pytest.mark.dependencies
def test_transcripts_get_their_tiers_and_stay_the_same_otherwise(tmp_path: Path) -> None:
    source = write_talk(tmp_path / "in", "talk")
    done = run("morphotag", tmp_path / "in", tmp_path / "out", "--workers", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 utterances, 19 words" in done.stdout and "words per second" in done.stdout
    made = (tmp_path / "out" / "talk.cha").read_text()
    assert strip_tiers(made) == source.read_text()
    CHAT.from_strs([made], strict=True)
    lines = made.splitlines()
    first = lines.index("*CHI:\tI want a cookie .")
    assert lines[first + 1] == "%mor:\tpron|I-Prs-Nom-S1 verb|want-Fin-Ind-Pres-S1 det|a-Ind-Art noun|cookie-Acc ."
    assert lines[first + 2] == "%gra:\t1|2|NSUBJ 2|0|ROOT 3|4|DET 4|2|OBJ 5|2|PUNCT"
    assert lines[first + 4].count("~part|not") == 1  # don't
    assert lines[first + 6] == "%com:\tpoints at it"


@pytest.mark.slow
def test_one_worker_and_two_and_spawned_ones_make_the_same(tmp_path: Path) -> None:
    for number in range(6):
        write_talk(tmp_path / "in", f"talk{number}", *TALK[number % 3 :][:: 1 if number % 3 == 0 else 3], *TALK[:2])
    outputs = []
    for name, options in (
        ("1", ["--workers", 1]),
        ("2", ["--workers", 2]),
        ("s", ["--workers", 2, "--strategy", "spawn"]),
    ):
        done = run("morphotag", tmp_path / "in", tmp_path / name, "--format", "chat,conllu,json", *options, timeout=170)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(read_outputs(tmp_path / name))
    assert len(outputs[0]) == 18
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.slow
def test_bad_inputs_cost_only_themselves_and_a_second_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_talk(folder, "good")
    write_talk(folder, "spanish", "*CHI:\tquiero agua .", languages="spa")
    write_talk(folder, "both", "*CHI:\tI want [- spa] .", "*MOT:\t[- spa] quiero agua .", languages="eng, spa")
    write_talk(folder, "long", "*CHI:\t" + "no " * 1100 + ".")
    (folder / "prose.cha").write_text("Once upon a time.\n")
    (folder / "latin.txt").write_bytes("café\n".encode("latin-1"))
    (folder / "table.conllu").write_text("1\tone\n")
    write_talk(folder, "laugh", "*CHI:\t&=laughs .")
    (folder / "story.txt").write_text("It wasn't me!\nWho was it?\n")
    (folder / "README.txt").write_text("Recorded in 1999.\n")
    done = run("morphotag", folder, tmp_path / "out", "--json", HF_HUB_OFFLINE="1", STANZA_RESOURCES_DIR=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    wanted = {
        "spanish.cha": "has no resources.json",
        "prose.cha": "is not CHAT",
        "latin.txt": "is not UTF-8",
        "table.conllu": "line 1",
    }
    assert summary["failed"].keys() == wanted.keys()
    for name, reason in wanted.items():
        assert reason in summary["failed"][name]
    assert summary["done"] == 5
    assert "utterance 1 has more than 1000 words" in summary["warnings"]["long.cha"][0]
    assert "'spa' not analysed" in summary["warnings"]["both.cha"][0]
    assert "README.txt" in summary["notices"]
    assert sorted(read_outputs(tmp_path / "out")) == ["both.cha", "good.cha", "laugh.cha", "long.cha", "story.conllu"]
    story = (tmp_path / "out" / "story.conllu").read_text()
    assert "2-3\twasn't\t" in story and "# text = Who was it?" in story
    again = run("morphotag", folder, tmp_path / "out", "--json", HF_HUB_OFFLINE="1", STANZA_RESOURCES_DIR=str(tmp_path))
    assert json.loads(again.stdout.splitlines()[-1])["skipped"] == 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda known: known.replace(f'"prefork": "{OUTPUTS}"', '"prefork": "0.1.9"'),
            f"prefork 0.1.9 made them, whose outputs are not those of {OUTPUTS}",
        ),
        (lambda known: OLD, f"a prefork older than {OUTPUTS} made them"),
    ],
    ids=["before a change to the rules", "before fingerprints had a version"],
)
def test_what_an_older_prefork_has_tagged_is_tagged_again_and_the_user_is_told(
    tmp_path: Path, change: Callable[[str], str], reason: str
) -> None:
    write_talk(tmp_path / "in", "talk")
    command = ("morphotag", tmp_path / "in", tmp_path / "out", "--json", "--workers", 1)
    assert run(*command).returncode == 0
    before = read_outputs(tmp_path / "out")
    change_fingerprint(tmp_path / "out", change)
    again = run(*command)
    assert f"1 file will be made again: {reason}" in again.stdout
    summary = json.loads(again.stdout.splitlines()[-1])
    assert (summary["done"], summary["skipped"]) == (1, 0)
    assert read_outputs(tmp_path / "out") == before
    last = run(*command)
    assert json.loads(last.stdout.splitlines()[-1])["skipped"] == 1
    assert "made again" not in last.stdout


@pytest.mark.slow
def test_another_language_in_the_corpus_does_not_have_everything_made_again(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(EMBEDDED["eng"], models)
    shutil.copytree(models / "en", models / "de")
    index = json.loads((models / "resources.json").read_text())
    (models / "resources.json").write_text(json.dumps({**index, "de": index["en"]}))
    command = ("morphotag", tmp_path / "in", tmp_path / "out", "--model-dir", models, "--json")
    write_talk(tmp_path / "in", "english")
    assert run(*command).returncode == 0
    write_talk(tmp_path / "in", "german", "*CHI:\tich will [- eng] .", "*MOT:\t[- eng] okay .", languages="deu")
    done = run(*command)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["skipped"], summary["done"], summary["utterances"]) == (1, 1, 1), done.stdout
    assert "1 utterance in 'eng' not analysed" in summary["warnings"]["german.cha"][0]  # whatever else is in the corpus


@pytest.mark.slow
def test_conllu_comes_out_as_it_went_in_but_for_the_analysis(tmp_path: Path) -> None:
    rows = ["1-2\tIt's\t_", "1\tIt\tX", "2\t's\tX", "3\there\tX", "4\t.\tX"]
    table = "\n".join(f"{row}\t_\t_\t_\t_\t_\t_\t{'SpaceAfter=No' if row[0] == '3' else '_'}" for row in rows)
    (tmp_path / "in.conllu").write_text(f"# newdoc\n# sent_id = 7\n# text = It's here.\n{table.replace('X', '_')}\n\n")
    done = run("morphotag", tmp_path / "in.conllu", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "out" / "in.conllu").read_text().splitlines()
    assert lines[:3] == ["# newdoc", "# sent_id = 7", "# text = It's here."]
    assert [line.split("\t")[1] for line in lines[3:8]] == ["It's", "It", "'s", "here", "."]
    assert lines[6].endswith("SpaceAfter=No")
    assert lines[4].split("\t")[3] == "PRON"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "srt"], "--format takes chat, conllu, json, parquet, not 'srt'"),
        (["--model-dir", "nowhere"], "nowhere: no such folder; check --model-dir"),
        (["--package", "huge"], "stanza's models are not in"),
        (["--lang", "deu"], "stanza's models are not in"),
    ],
)
def test_options_that_cannot_be_met(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "a.txt").write_text("Hello there.\n")
    none, nobody = str(tmp_path / "none"), "http://127.0.0.1:9"
    environment: Any = {"STANZA_RESOURCES_DIR": none, "STANZA_RESOURCES_URL": nobody} if "stanza" in message else {}
    done = run("morphotag", tmp_path / "a.txt", tmp_path / "out", *arguments, **environment)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_plan_names_the_models(tmp_path: Path) -> None:
    write_talk(tmp_path, "talk")
    done = run("plan", "morphotag", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stanza," in done.stdout and "MB of weights" in done.stdout and "audio" not in done.stdout
