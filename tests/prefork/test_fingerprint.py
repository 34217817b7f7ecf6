"""Fingerprints: what they hold, whoever's engine it is; digests of whole files, each read once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefork import fingerprint
from prefork.engines import registry
from prefork.engines.base import LoadError
from prefork.fingerprint import OUTPUTS, ModelFile, complete, explain, find_packages, list_files, note_files, summarise
from prefork.platform_matrix.versions import find_version

OWN = ("ctc", "wav2vec2", "ctc-recovery", "match", "whisper", "language", "whisper-aligner", "diarize", "stanza")
SIZE = 3 << 20
Reads = list[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the digests; what has just been written counts as old."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", -1.0)
    return tmp_path / "cache" / "prefork" / "digests.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Files that were read to be digested."""
    seen: Reads = []
    digest = hashlib.file_digest

    def note(stream: io.BufferedReader, name: str) -> Any:
        seen.append(stream.name)
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", note)
    return seen


def digest(path: Path) -> str:
    return ModelFile.note(path).digest()


def change_middle(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(SIZE // 2)
        byte = stream.read(1)[0]
        stream.seek(SIZE // 2)
        stream.write(bytes([byte ^ 1]))


def write_in_place(path: Path) -> None:
    change_middle(path)


def replace_by_another(path: Path) -> None:
    copy = path.with_suffix(".new")
    shutil.copy2(path, copy)
    change_middle(copy)
    copy.replace(path)


@pytest.mark.parametrize("change", [write_in_place, replace_by_another])
@pytest.mark.parametrize("keep_time", [False, True])
def test_one_byte_in_the_middle_makes_another_model(
    cache: Path, model: Path, reads: Reads, change: Callable[[Path], None], keep_time: bool
) -> None:
    before, status = digest(model), model.stat()
    assert digest(model) == before and len(reads) == 1
    change(model)
    if keep_time:
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert model.stat().st_mtime_ns == status.st_mtime_ns
    assert digest(model) != before


def test_a_second_start_reads_no_model(cache: Path, model: Path, reads: Reads) -> None:
    noted = note_files({"files": {"model": model}})
    first = complete("ctc", noted)
    assert reads == [str(model)] and cache.is_file()
    assert complete("ctc", note_files({"files": {"model": model}})) == first
    assert len(reads) == 1


def test_what_was_written_a_moment_ago_is_not_kept(
    cache: Path, model: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    digest(model)
    assert not cache.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: None,
        lambda entry: [],
        lambda entry: "text",
        lambda entry: {},
        lambda entry: {**entry, "sha256": None},
        lambda entry: {**entry, "sha256": "0" * 63},
        lambda entry: {**entry, "sha256": {"nested": [1]}},
        lambda entry: {**entry, "state": "unknown"},
        lambda entry: {**entry, "state": entry["state"][:3]},
    ],
)
def test_an_entry_that_makes_no_sense_is_made_anew(cache: Path, model: Path, reads: Reads, spoil: Any) -> None:
    right = digest(model)
    content = json.loads(cache.read_text())
    cache.write_text(json.dumps({name: spoil(entry) for name, entry in content.items()}))
    assert digest(model) == right and len(reads) == 2
    assert digest(model) == right and len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"null", b"[" * 5000])
def test_a_torn_cache_costs_nothing_but_the_reading(cache: Path, model: Path, reads: Reads, content: bytes) -> None:
    right = digest(model)
    cache.write_bytes(content)
    assert digest(model) == right and len(reads) == 2
    assert json.loads(cache.read_text())[str(model)]["sha256"] == right


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_reading(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert digest(model) == digest(model)


def test_a_model_that_has_changed_since_it_was_loaded_is_not_taken_for_it(cache: Path, model: Path) -> None:
    noted = ModelFile.note(model)
    change_middle(model)
    with pytest.raises(LoadError, match="has changed since the model was read from it; start again"):
        noted.digest()
    gone = ModelFile.note(model)
    model.unlink()
    with pytest.raises(LoadError, match="cannot be read"):
        gone.digest()
    with pytest.raises(LoadError, match="cannot be read"):
        ModelFile.note(model)


def test_a_folder_stands_for_each_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "model" / "part").mkdir(parents=True)
    (tmp_path / "model" / "part" / "a.bin").write_bytes(b"a")
    noted = note_files({"engine": "script", "model": tmp_path / "model", "rest": [1, None, {"two": (2.0, "x")}]})
    whole = complete("ctc", noted)
    assert list(whole["model"]) == ["part/a.bin"] and len(whole["model"]["part/a.bin"]) == 64
    assert whole["rest"] == [1, None, {"two": [2.0, "x"]}]
    assert [Path(file.path).name for file in list_files(noted)] == ["a.bin"]
    json.dumps(whole)


def test_every_engine_s_fingerprint_has_what_made_the_outputs() -> None:
    for name in registry.names():
        made = complete(name, {"engine": name})
        assert made["prefork"] == OUTPUTS
        assert made["packages"]["torch"] == find_version("torch") != ""
    assert set(OWN) <= set(registry.names())
    assert find_packages("stanza")["stanza"] == find_version("stanza") != ""
    assert find_packages("whisper")["transformers"] == find_version("transformers") != ""
    assert "stanza" not in find_packages("whisper")
    assert "torch" not in find_packages("rev")


@pytest.mark.usefixtures("script_engine")
def test_another_package_s_engine_is_told_by_its_package_s_version() -> None:
    assert find_packages("script") == {"script-engine": "1.0", "torch": find_version("torch")}
    assert find_packages("oracle") == {"script-engine": "1.0"}


def test_an_engine_cannot_say_another_version_of_prefork() -> None:
    assert complete("ctc", {"prefork": "9.9", "packages": {}}) == complete("ctc", {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prefork": "0.1.9"}, f"prefork 0.1.9 made them, whose outputs are not those of {OUTPUTS}"),
        ({"packages": {"torch": "2.13.0"}}, "torch was 2.13.0 and is 2.14.1"),
        ({"packages": {"torch": "2.14.1", "stanza": "1"}}, "stanza has changed"),
        ({"files": {"model.safetensors": "1" * 64}}, "model.safetensors has changed"),
        ({"dtype": "int8"}, "dtype was int8 and is float32"),
        ({"dtype": "int8", "packages": {"torch": "2"}}, "dtype was int8 and is float32, torch was 2 and is 2.14.1"),
        ({"engine": "whisper-aligner"}, "whisper-aligner made them"),
        ({}, ""),
    ],
)
def test_what_has_changed_is_named(change: dict[str, Any], reason: str) -> None:
    stage = {"engine": "ctc", "dtype": "float32", "files": {"model.safetensors": "0" * 64}}
    stage |= {"prefork": OUTPUTS, "packages": {"torch": "2.14.1"}}
    assert explain({"stages": [{**stage, **change}]}, {"stages": [stage]}) == reason


def test_the_most_frequent_reasons_are_told_in_one_line() -> None:
    line = summarise({"a": 1, "b": 12, "c": 2, "d": 1, "e": 1})
    assert line == "17 files will be made again: b (12); c (2); a (1); other reasons (2)"
    assert summarise({"b": 1}) == "1 file will be made again: b"
