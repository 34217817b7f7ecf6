"""Engines of another package, used by the commands as prefork's own are: what they declare, and what they may not."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from rustling.chat import CHAT

from prefork.engines import registry
from prefork.engines.base import Declaration, LanguageTable, LoadError, Role
from prefork.pool.pipeline import Stage, align, list_phases, transcribe
from tests.prefork.command import SAMPLES, copy_sample, read_outputs, run, write_wav
from tests.prefork.installations import write_metadata

foreign = pytest.mark.usefixtures("script_engine")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("adult07", "child15"):
        (folder / f"{name}.flac").write_bytes((SAMPLES / f"{name}.flac").read_bytes())
    write_wav(folder / "silent.wav", 2.0)
    return folder


# -- by the commands -------------------------------------------------------------------------------------------------


@foreign
def test_a_recogniser_of_another_package_transcribes(recordings: Path, tmp_path: Path) -> None:
    options = ("--engine", "parrot", "--lang", "de", "--format", "chat,json", "--workers", 2, "--memory-checkpoints")
    done = run("transcribe", recordings, tmp_path / "out", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "out" / "child15.cha").read_text()
    CHAT.from_strs([text], parallel=False, strict=True)
    assert "@Languages:\tdeu" in text and "squawk" in text
    found = json.loads((tmp_path / "out" / "child15.json").read_text())
    words = [word for utterance in found["utterances"] for word in utterance["words"]]
    assert [word["start"] for word in words] == [float(n) for n in range(34)], "33.02 s, none of them silent"
    assert not json.loads((tmp_path / "out" / "silent.json").read_text())["utterances"]
    log = (tmp_path / "out" / ".prefork" / "log.txt").read_text()
    order = ("Before Listening Closely:", "After Listening Closely Cleanup:", "After Listening Closely (post-cleanup):")
    places = [log.find(name) for name in order]
    assert places == sorted(places) and places[0] > 0, "its memory stage has a name that prefork does not know"


@foreign
def test_an_aligner_of_another_package_aligns_by_its_name_and_its_familys(tmp_path: Path) -> None:
    for name in ("adult07", "child15"):
        copy_sample(tmp_path / "in", name)
    outputs = []
    for name in ("ruler", "parrot"):
        done = run("align", tmp_path / "in", tmp_path / name, "--engine", name, "--format", "chat,json")
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(read_outputs(tmp_path / name))
    assert outputs[0] == outputs[1] and len(outputs[0]) == 4
    found = json.loads(outputs[0]["child15.json"])
    words = [word for utterance in found["utterances"] for word in utterance["words"]]
    lengths = [word["end"] - word["start"] for word in words]
    assert max(lengths) - min(lengths) < 0.01 and sum(lengths) == pytest.approx(33.02, abs=0.1)
    assert b"%wor:" in outputs[0]["adult07.cha"]


@foreign
def test_a_recogniser_of_another_package_finds_utterances_without_times(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "child15.flac").write_bytes((SAMPLES / "child15.flac").read_bytes())
    (tmp_path / "in" / "child15.txt").write_text("squawk " * 12 + "\nnobody ever says a thing like this\n")
    options = ("--engine", "ctc", "--utr", "parrot", "--format", "json")
    done = run("align", tmp_path / "in", tmp_path / "out", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 without times were found in the recordings" in " ".join(done.stdout.split())


@foreign
@pytest.mark.exec  # it says whether torch is there
def test_a_service_of_another_package_transcribes_and_says_who_speaks(recordings: Path, tmp_path: Path) -> None:
    done = run("transcribe", recordings, tmp_path / "out", "--engine", "herald", "--diarize", "--format", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    (utterance,) = json.loads((tmp_path / "out" / "adult07.json").read_text())["utterances"]
    assert [word["text"] for word in utterance["words"]] == ["hear", "free"]
    assert utterance["speaker"] == "Crier"


@foreign
def test_a_tagger_of_another_package_has_a_table_by_language_and_no_text_is_made_again_for_anothers(
    tmp_path: Path,
) -> None:
    head = "@UTF8\n@Begin\n@Languages:\t{0}\n@Participants:\tPAR Participant\n@ID:\t{0}|x|PAR|||||Participant|||\n"
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.cha").write_text(head.format("eng") + "*PAR:\thello .\n@End\n")

    def tag(*options: str) -> list[dict[str, object]]:
        done = run("morphotag", source, target, "--engine", "lexicon", "--json", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    done, _ = tag()
    assert done["warnings"] == ["looked up in the book of eng"]
    (source / "b.cha").write_text(head.format("deu") + "*PAR:\thallo .\n@End\n")
    done, summary = tag()
    assert (done["warnings"], summary["skipped"]) == (["looked up in the book of deu"], 1)
    *_, summary = tag("--lang", "fra")
    assert summary["skipped"] == 0, "what is said of texts that name no language is another setting"


@foreign
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("transcribe", "--engine", "ruler"),
            "transcribe takes --engine whisper, rev, parrot or herald, not 'ruler', which serves align as an aligner",
        ),
        (
            ("align", "--engine", "relay"),
            "align takes --engine ctc, wav2vec2, whisper, brittle, parrot or script, not 'relay', which serves no "
            "command",
        ),
        (
            ("align", "--engine", "rular"),
            "align takes --engine ctc, wav2vec2, whisper, brittle, parrot or script, not 'rular': no engine named "
            "'rular'; did you mean ruler?",
        ),
        (("align", "--utr", "ruler"), "--utr takes auto, ctc, whisper, rev, parrot, herald, off, not 'ruler', "),
        (
            ("morphotag", "--engine", "ctc"),
            "morphotag takes --engine stanza, forgetful or lexicon, not 'ctc', which serves align as an aligner",
        ),
        (
            ("transcribe", "--engine", "parrot", "--model", "x"),
            "engine parrot does not take --model, only --dtype, --lang; leave it out",
        ),
        (
            ("transcribe", "--engine", "parrot", "--dtype", "int8"),
            "engine parrot takes --dtype float32 or float64, not 'int8'",
        ),
        (
            ("align", "--engine", "ruler", "--max-segment", "3"),
            "engine ruler does not take --max-segment, only --dtype, --lang; leave it out",
        ),
        (
            ("align", "--engine", "script", "--lang", "de"),
            "engine script does not take --lang; leave it out",
        ),
        (
            ("align", "--utr", "parrot", "--utr-model", "x"),
            "engine parrot does not take --utr-model, only --lang; leave it out",
        ),
        (("transcribe", "--engine", "herald", "--model", "x"), "the herald knows no models; leave --model out"),
        (
            ("transcribe", "--engine", "herald", "--speakers", "2"),
            "engine herald does not take --speakers; leave it out",
        ),
        (
            ("morphotag", "--engine", "lexicon", "--retokenize"),
            "engine lexicon does not take --retokenize, only --lang; leave it out",
        ),
        (("diarize", "--engine", "parrot"), "diarize takes --engine diarize, not 'parrot', which serves transcribe "),
    ],
)
def test_what_an_engine_does_not_do_or_take_is_refused_in_one_line(
    arguments: tuple[str, ...], line: str, recordings: Path, tmp_path: Path
) -> None:
    command, *options = arguments
    done = run(command, recordings, tmp_path / "out", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"prefork: {line}") and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


@foreign
def test_a_table_by_language_that_is_declared_and_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child15")
    done = run("morphotag", tmp_path / "in", tmp_path / "out", "--engine", "forgetful")
    assert done.returncode == 2
    expected = "prefork: engine forgetful declares a model for each language, but its fingerprint has no 'models' by "
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1, done.stderr


# -- without importing them ------------------------------------------------------------------------------------------


@foreign
@pytest.mark.exec
def test_what_engines_declare_is_known_without_torch() -> None:
    code = (
        "import sys\nfrom prefork.engines import registry\nfrom prefork.engines.base import Role\n"
        "from prefork.pool.pipeline import align, list_phases, transcribe\n"
        "for name in registry.names(): registry.declare(name)\n"
        "print(registry.list_choices(list(Role)), [stage.engine for stage in transcribe('parrot', dtype='float64')],\n"
        "      registry.list_obstacles({'parrot': {'dtype': 'float64'}}), len(list_phases(align())))\n"
        "print([name for name in ('torch', 'transformers', 'stanza', 'av', 'script_speech') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known, heavy = done.stdout.splitlines()
    assert "'parrot', 'assign'" in known and "no GPU has so wide numbers" in known
    assert heavy == "[]"


@foreign
def test_engines_of_one_family_stay_in_memory_together() -> None:
    assert [len(phase) for phase in list_phases((Stage("parrot"), Stage("ruler"), Stage("assign")))] == [3]
    assert [len(phase) for phase in list_phases((Stage("parrot"), Stage("match"), Stage("ctc")))] == [2, 1]
    assert "parrot" in registry.list_with_models()
    assert not {"ruler", "match", "lexicon"} & set(registry.list_with_models())


def test_without_other_packages_only_preforks_own_engines_are_offered() -> None:
    with pytest.raises(LoadError, match="transcribe takes --engine whisper or rev, not 'ctc'"):
        transcribe("ctc")
    with pytest.raises(LoadError, match="--utr takes auto, ctc, whisper, rev, off, not 'never'"):
        align(utr="never")


@foreign
@pytest.mark.parametrize("name", ["whisper", "ctc", "whisper-aligner", "stanza", "diarize", "rev", "parrot", "herald"])
def test_an_engine_takes_what_it_declares_to_take(name: str) -> None:
    declaration = registry.declare(name)
    group = registry.SERVICES if registry.is_service(name) else registry.GROUP
    (entry,) = entry_points(group=group, name=name)
    parameters = inspect.signature(entry.load()).parameters
    wanted = {*declaration.options, *(["languages"] if declaration.languages else [])}
    assert declaration.roles and wanted <= set(parameters)
    assert not {"model", "dtype", "max_segment", "language"} & (set(parameters) - wanted), "nothing is kept back"


def _is_own(entry: EntryPoint) -> bool:
    return entry.dist is not None and entry.dist.name == "prefork"


def test_every_engine_of_preforks_own_declares_itself() -> None:
    groups = (registry.GROUP, registry.SERVICES, registry.DECLARATIONS)
    entries = [entry for group in groups for entry in entry_points(group=group) if _is_own(entry)]
    engines, services, declared = ({entry.name for entry in entries if entry.group == group} for group in groups)
    assert "ctc" in engines and "rev" in services and declared == engines | services


# -- what cannot be --------------------------------------------------------------------------------------------------

_ENGINE = "from prefork.engines.base import HostEngine\n\n\nclass Own(HostEngine):\n    name = 'own'\n"
_JOIN = "\n    def join(self, job, document, segments, pieces):\n        return document\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package with an engine, whose declaration is still to be written."""
    folder = tmp_path / "packages"
    entries = "[prefork.engines]\nown = own_engine:Own\n\n[prefork.declarations]\nown = own_declaration:OWN\n"
    write_metadata(folder, "own", "1.2", entry_points=entries)
    (folder / "own_engine.py").write_text(_ENGINE + _JOIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in ("own_engine", "own_declaration"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "its declaration cannot be imported from own_declaration:OWN: "),
        (
            "OWN = {'roles': ('aligner',)}",
            "own_declaration:OWN is not a prefork.engines.base.Declaration; fix its",
        ),
        ("import torch\nOWN = Declaration()", "own_declaration:OWN imports torch, which commands do without; move the"),
        ("OWN = Declaration(roles=('alinger',))", "ValueError: roles must be of aligner, recovery, recogniser, "),
        (
            "OWN = Declaration(roles='aligner')",
            "ValueError: roles must be a tuple, not 'aligner'; fix it, or",
        ),
        ("OWN = Declaration(options=('model'))", "ValueError: options must be a tuple, not 'model'; fix it, or"),
        ("OWN = Declaration(recovery='ctc-recovery')", "ValueError: recovery is for engines with the role aligner, "),
        ("raise SystemExit('no')", "it calls sys.exit; fix it, or uninstall own"),
    ],
)
@pytest.mark.exec
def test_a_declaration_that_cannot_be_costs_its_own_engine_alone(
    package: Path, tmp_path: Path, source: str, reason: str
) -> None:
    (package / "own_declaration.py").write_text(f"from prefork.engines.base import Declaration\n{source}\n")
    copy_sample(tmp_path / "in", "child15")
    done = run("align", tmp_path / "in", tmp_path / "out", "--engine", "own")
    assert done.returncode == 2
    assert "prefork: align takes --engine ctc, wav2vec2 or whisper, not 'own': engine own: " in done.stderr
    assert reason in done.stderr and done.stderr.count("\n") == 1
    unknown = run("align", tmp_path / "in", tmp_path / "out", "--engine", "ctx")
    assert "align takes --engine ctc, wav2vec2 or whisper, not 'ctx': no engine named 'ctx'" in unknown.stderr


@pytest.mark.parametrize("stage", ["pipeline", "audio_preprocessing", "Two Words", "one\nline", 3])
def test_a_memory_stage_that_cannot_be_is_refused_when_the_engine_is_loaded(package: Path, stage: object) -> None:
    (package / "own_engine.py").write_text(f"{_ENGINE}    memory_stage = {stage!r}\n{_JOIN}")
    with pytest.raises(LoadError) as raised:
        registry.create("own", {})
    expected = (
        "engine own: memory_stage must be transcription, diarization, speaker_alignment, or a name of its own in lower "
        f"case letters, digits and _, other than pipeline and audio_preprocessing, not {stage!r}"
    )
    assert str(raised.value) == expected


def test_a_name_that_another_package_declares_stays_with_the_package_of_the_engine(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = registry.declare("ctc")
    other = package / "other"
    write_metadata(other, "other", "1.0", entry_points="[prefork.declarations]\nctc = own_declaration:OWN\n")
    (package / "own_declaration.py").write_text(
        "from prefork.engines.base import Declaration, Role\nOWN = Declaration(roles=(Role.TAGGER,))\n"
    )
    monkeypatch.syspath_prepend(str(other))
    assert registry.declare("ctc") is known
    assert registry.declare("own") == Declaration(roles=(Role.TAGGER,))


def test_a_fingerprint_is_narrowed_to_the_languages_of_a_text() -> None:
    known = {"engine": "mine", "models": {"deu": "a", "eng": "b"}, "language": "eng"}
    assert LanguageTable().narrow("mine", known, ["", "fra"]) == {**known, "models": {"eng": "b"}}
    with pytest.raises(
        LoadError, match="engine mine declares a model for each language, but its fingerprint has no 'b"
    ):
        LanguageTable("books").narrow("mine", known, [""])
