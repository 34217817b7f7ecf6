"""`prefork data pack` and `prefork data describe`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from prefork.engines.audio.reader import read_audio
from prefork.engines.audio.whole import decode
from tests.prefork.command import SAMPLES, copy_sample, run
from tests.prefork.data_sets import make_wav, read_rows, write_rows


def test_a_folder_becomes_a_data_set_of_its_utterances(tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child14")
    copy_sample(tmp_path / "in", "child15")
    done = run("data", "pack", tmp_path / "in", tmp_path / "out.parquet")
    assert done.returncode in (0, 1), done.stderr
    rows = read_rows(tmp_path / "out.parquet")
    assert rows and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        samples = decode(row["audio"]["bytes"], Path(row["id"]))
        assert len(samples) == row["audio_size"] and row["text"] and row["language"] == "eng"
        if row["start"] is None:  # a transcript without times is a row
            assert row["audio"]["path"] == "child15.flac"
            continue
        heard = read_audio(tmp_path / "in" / f"{row['id'][:7]}.flac", row["start"], row["end"])
        assert np.abs(samples - heard).max() <= 1 / 32768
        assert row["speaker"]
    features = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"huggingface"])["info"]["features"]
    assert features["audio"] == {"_type": "Audio"} and set(features) == set(rows[0])


def test_recordings_without_transcripts_are_rows_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(SAMPLES / "child14.flac", tmp_path / "in")
    (tmp_path / "in/broken.wav").write_bytes(b"no sound")
    done = run("data", "pack", tmp_path / "in", tmp_path / "out.parquet", "--unit", "file")
    assert done.returncode == 1 and "broken.wav: " in done.stderr
    (row,) = read_rows(tmp_path / "out.parquet")
    assert row["audio"] == {"bytes": (SAMPLES / "child14.flac").read_bytes(), "path": "child14.flac"}
    assert (row["id"], row["text"]) == ("child14.flac", None)


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    refused = run("data", "pack", tmp_path / "in", tmp_path / "out.parquet")
    assert refused.returncode == 2 and "has no recordings" in refused.stderr
    refused = run("data", "pack", SAMPLES, tmp_path / "out")
    assert refused.returncode == 2 and "ends in .parquet" in refused.stderr
    assert not (tmp_path / "out.parquet").exists()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("described")
    for language, first in (("eng", 0), ("deu", 100)):
        sizes = [1600 * (1 + n % 10) + first for n in range(40)]
        path = root / f"corpus=x/language={language}/a.parquet"
        write_rows(path, ["a"] * 40, recordings=[make_wav(n) for n in sizes], more={"audio_size": sizes}, group=20)
    return root


def test_a_data_set_is_described(corpus: Path, tmp_path: Path) -> None:
    options = ["--max-audio-len", "16000", "--max-num-elements", "160000", "--workers", "1"]
    done = run("data", "describe", corpus, *options, "--json", "--picture", tmp_path / "lengths.svg")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["files"], found["rows"], found["passing"]) == (2, 80, 76)  # 4 have 16,100 samples
    assert list(found["languages"]) == ["eng", "deu"]
    assert sum(bucket["rows"] for bucket in found["buckets"]) == sum(n for _, _, n in found["histogram"]) == 76
    assert found["length"]["padding"] < found["static"]["padding"] and found["static"]["batches"] == 10
    assert found["memory"]["total"] > found["memory"]["waiting"] > 0
    assert (tmp_path / "lengths.svg").read_text().lstrip().startswith("<?xml")
    shown = run("data", "describe", corpus, *options).stdout
    assert "80, 76 of them pass" in shown and "LENGTH" in shown and "padding" in shown
