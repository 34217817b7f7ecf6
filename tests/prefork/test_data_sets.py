"""Commands on data sets: rows in, rows out, in the same order; interrupted, damaged, filtered."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefork.engines.parquet.options import RowOptions
from prefork.pool.pipeline import Residency, Stage
from prefork.run.request import RunRequest
from prefork.run.runner import run as run_request
from prefork.run.summary import Report
from tests.prefork.command import read_outputs, run, start
from tests.prefork.data_sets import KINDS, make_wav, read_rows, write_rows

pytestmark = pytest.mark.usefixtures("script_engine")
SCRIPT = ["--engine", "script", "--format", "parquet", "--json", "--workers", "2"]


def _run(source: Path, target: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the summary."""
    done = run("align", source, target, *SCRIPT, *options)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def _refuse(source: Path, target: Path, *options: str) -> str:
    """The one line that says why nothing could be done."""
    done = run("align", source, target, *SCRIPT, *options)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("prefork: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_results_have_the_rows_in_their_order_and_all_columns_but_the_audio(tmp_path: Path) -> None:
    texts = [f"say {'x' * n}" for n in range(1, 9)]
    for number, kind in enumerate(KINDS):
        more: dict[str, Any] = {"id": list(range(8)), "tags": [["a"] * n for n in range(8)]}
        write_rows(tmp_path / f"in/lang={number}/{kind}.parquet", texts, kind=kind, more=more)
    code, summary = _run(tmp_path / "in", tmp_path / "out")
    assert (code, summary["done"]) == (0, 8 * len(KINDS))
    for number, kind in enumerate(KINDS):
        path = tmp_path / f"out/lang={number}/{kind}.parquet"
        assert pq.read_schema(path).names == [
            *("text", "id", "tags"),
            *("prediction", "words", "speakers", "error", "prefork_version"),
        ]
        rows = read_rows(path)
        assert [row["id"] for row in rows] == list(range(8))
        assert [row["words"][0]["end"] for row in rows] == [2.0 * len(text[4:]) for text in texts]
        assert all(row["error"] is None and row["tags"] == ["a"] * row["id"] for row in rows)
    assert not list((tmp_path / "out/.prefork/parts").rglob("*.parquet"))


def test_an_interrupted_run_goes_on_and_writes_what_it_would_have_written(tmp_path: Path) -> None:
    texts = ["\n".join(["sleep"] * 4 + [f"say {n}"]) for n in range(24)]
    write_rows(tmp_path / "in/a.parquet", texts, group=4)
    assert _run(tmp_path / "in", tmp_path / "calm")[0] == 0
    for action in (signal.SIGINT, signal.SIGKILL):
        with start("align", tmp_path / "in", tmp_path / "out", *SCRIPT) as process:
            assert process.stdout is not None
            done = 0
            for line in process.stdout:
                done += '"event": "done"' in line
                if done == 10:
                    process.send_signal(action)
                    break
            process.communicate(timeout=20)
        parts = list((tmp_path / "out/.prefork/parts").rglob("*.parquet"))
        assert not (tmp_path / "out/a.parquet").exists()
    assert parts
    code, summary = _run(tmp_path / "in", tmp_path / "out")
    assert code == 0 and summary["skipped"] >= 4 * (len(parts) - 1) and summary["done"] + summary["skipped"] == 24
    assert read_rows(tmp_path / "out/a.parquet") == read_rows(tmp_path / "calm/a.parquet")
    assert _run(tmp_path / "in", tmp_path / "out")[1]["skipped"] == 24


def test_what_is_wrong_with_a_row_is_said_in_its_row(tmp_path: Path) -> None:
    marker = "kill"  # its worker dies whoever runs it
    texts = ["say a", "say b", None, "raise", marker, "say f", "bug", "say h"]
    recordings: list[bytes | None] = [make_wav(1600) for _ in texts]
    recordings[0], recordings[1] = None, b"no sound at all"
    write_rows(tmp_path / "in/a.parquet", texts, recordings=recordings, group=4)
    code, summary = _run(tmp_path / "in", tmp_path / "out")
    assert (code, summary["done"], len(summary["failed"])) == (1, 2, 6)
    errors = [row["error"] for row in read_rows(tmp_path / "out/a.parquet")]
    expected = ["is null", "is not a recording", "'text' is null", "cannot be processed", "died", None, "a bug", None]
    for error, text in zip(errors, expected, strict=True):
        assert error is None if text is None else text in error, errors
    assert _run(tmp_path / "in", tmp_path / "out")[1]["skipped"] == 8


def test_a_file_that_cannot_be_used_costs_no_other(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "in/good.parquet", ["say a", "say b"])
    data = good.read_bytes()
    (tmp_path / "in/cut.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "in/empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"text": ["say a"]}), tmp_path / "in/mute.parquet")
    write_rows(tmp_path / "in/none.parquet", [])
    pq.ParquetWriter(tmp_path / "in/nothing.parquet", pq.read_schema(good)).close()
    two = pa.table({"left": [make_wav(160)], "right": [make_wav(160)], "text": ["say a"]})
    pq.write_table(two, tmp_path / "in/two.parquet")
    write_rows(tmp_path / "in/other.parquet", ["say c"], kind="list", more={"new": [1]})
    code, summary = _run(tmp_path / "in", tmp_path / "out")
    assert (code, summary["done"]) == (1, 3)
    failed = summary["failed"]
    assert "cut off" in failed["cut.parquet"] and "no parquet file" in failed["empty.parquet"]
    assert "has no column with recordings" in failed["mute.parquet"]
    assert "2 columns that may be the recordings, 'left', 'right'" in failed["two.parquet"]
    assert sorted(read_outputs(tmp_path / "out")) == [f"{n}.parquet" for n in ("good", "none", "nothing", "other")]
    assert read_rows(tmp_path / "out/nothing.parquet") == []


def test_filters(tmp_path: Path) -> None:
    texts = [f"say {n}" for n in range(12)]
    more = {"audio_size": [1600 * (1 + n % 5) for n in range(12)], "number": list(range(12))}
    write_rows(tmp_path / "in/split=train/a.parquet", texts, more=more)
    write_rows(tmp_path / "in/split=dev/b.parquet", texts, more={"number": list(range(12))})
    options = ["--split", "train", "--where", "number != 1 and not number in (2, 3)"]
    _run(tmp_path / "in", tmp_path / "out", *options, "--min-audio-len", "3200", "--max-audio-len", "4800")
    assert [row["number"] for row in read_rows(tmp_path / "out/split=train/a.parquet")] == [6, 7, 11]
    assert sorted(read_outputs(tmp_path / "out")) == ["split=train/a.parquet"]
    # without a column of lengths the recordings themselves are measured; the first rows that pass are taken
    _run(tmp_path / "in", tmp_path / "dev", "--split", "dev", "--max-audio-len", "3200", "--limit", "3")
    assert [row["number"] for row in read_rows(tmp_path / "dev/split=dev/b.parquet")] == [0, 1, 5]
    assert "no split 'test'; by the names of its files there are dev, train" in _refuse(
        tmp_path / "in", tmp_path / "x", "--split", "test"
    )
    assert "none of its 24 rows passes --where 'number > 90'" in _refuse(
        tmp_path / "in", tmp_path / "x", "--where", "number > 90"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--audio-column", "text"], "its column 'text' is string, and recordings are binary"),
        (["--audio-column", "sound"], "has no column 'sound'; check --audio-column, there are 'audio', 'text'"),
        (["--text-column", "number"], "is int64, and texts are strings"),
        (["--id-column", "twice"], "have the same twice 'same'; make the ids unique"),
        (["--where", "language = 'eng'"], "has no column 'language'; check --where"),
        (["--where", "number = 'eng'"], "is int64, which cannot be compared with 'eng'"),
        (["--where", "__import__('os')"], "write it like"),
    ],
)
def test_options_that_do_not_fit_the_data_set(tmp_path: Path, options: list[str], text: str) -> None:
    write_rows(tmp_path / "in/a.parquet", ["say a", "say b"], more={"number": [1, 2], "twice": ["same", "same"]})
    done = run("align", tmp_path / "in", tmp_path / "out", *SCRIPT, *options)
    assert done.returncode in (1, 2) and text in done.stderr + done.stdout, done.stdout + done.stderr
    assert not read_outputs(tmp_path / "out")


def test_a_data_set_and_its_format_go_together(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in/a.parquet", ["say a"])
    refused = run("align", path, tmp_path / "out", "--engine", "script")
    assert refused.returncode == 2 and "is a data set; give --format parquet" in refused.stderr
    refused = run("align", tmp_path / "in", tmp_path / "out", "--engine", "script", "--limit", "3")
    assert refused.returncode == 2 and "--limit is for data sets" in refused.stderr
    refused = run("align", path, tmp_path / "out", *SCRIPT, "--format", "json")
    assert refused.returncode == 2 and "no other format" in refused.stderr
    (tmp_path / "in/a.parquet").unlink()
    assert "has no parquet files" in _refuse(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/data-00000-of-00001.arrow").touch()
    assert "with to_parquet" in _refuse(tmp_path / "in", tmp_path / "out")


def test_models_that_take_turns_and_recordings_that_are_kept(tmp_path: Path) -> None:
    texts = [f"say {'x' * n}" for n in range(1, 8)]
    path = write_rows(tmp_path / "in/a.parquet", [*texts, "raise"], kind="struct")
    request = RunRequest(
        path.parent,
        tmp_path / "out",
        "align",
        (Stage("script"), Stage("relay")),
        residency=Residency.STAGE,
        workers=2,
        rows=RowOptions(keep_audio=True),
    )
    assert run_request(request, Report) == 1
    rows, given = read_rows(tmp_path / "out/a.parquet"), read_rows(path)
    assert [row["audio"] for row in rows] == [row["audio"] for row in given]
    assert [bool(row["error"]) for row in rows] == [False] * 7 + [True]
    assert all(row["words"][0]["word"] == "said" for row in rows[:7])
    assert not (tmp_path / "out/.prefork/parts/a.parquet").exists()


def test_texts_are_tagged_without_recordings(tmp_path: Path) -> None:
    table = pa.table({"sentence": ["It rains.", "", None], "number": [1, 2, 3]})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in/a.parquet")
    done = run("morphotag", tmp_path / "in", tmp_path / "out", "--engine", "lexicon", "--format", "parquet", "--json")
    assert done.returncode == 1, done.stderr
    rows = read_rows(tmp_path / "out/a.parquet")
    assert [row["number"] for row in rows] == [1, 2, 3]
    assert rows[0]["error"] is None and rows[0]["prediction"] is not None
    assert "has no words" in rows[1]["error"] and "is null" in rows[2]["error"]
