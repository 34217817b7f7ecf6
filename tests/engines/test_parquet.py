"""Parquet data sets: paths of rows, conditions, columns, slices."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.engines.audio.reader import AudioReader, probe
from prefork.engines.base import InputError
from prefork.engines.parquet import rows
from prefork.engines.parquet.columns import find_columns
from prefork.engines.parquet.conditions import find_mask, parse_condition
from prefork.engines.parquet.data_set import choose_split
from prefork.engines.parquet.row_path import RowAddress, parse
from prefork.engines.parquet.rows import open_file, read_row, read_slices
from tests.prefork.data_sets import KINDS, make_wav, write_rows


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_row_has_a_path_of_its_own(column: str, group: int, row: int) -> None:
    address = RowAddress(Path("data/train.parquet"), column, group, row)
    assert parse(address.path) == address
    assert address.path.parents[2] == address.file


@pytest.mark.parametrize("path", ["a.wav", "a.parquet", "x.parquet/a/b/c", "a/b/1/2", "x.parquet/1/2", "/"])
def test_other_paths_are_no_rows(path: str) -> None:
    assert parse(Path(path)) is None


_TABLE = pa.table(
    {"n": [1, 2, 3, None], "t": ["a", "b", None, "it's"], "odd name": [0.5, 1.5, 2.5, 3.5], "b": [True] * 4}
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("n = 2", [1]),
        ("n != 2", [0, 2]),
        ("n >= 2 and t = 'b' or n < 2", [0, 1]),
        ("n in (1, 3)", [0, 2]),
        ("not (n = 1 or n = 2)", [2]),
        ("t is null", [2]),
        ("t is not null and n is null", [3]),
        ("t = 'it''s'", [3]),
        ('"odd name" > 1e0', [1, 2, 3]),
        ("b = true AND lang == 'eng'", [0, 1, 2, 3]),
        ("year < 2000", []),
    ],
)
def test_conditions(text: str, rows: list[int]) -> None:
    mask = find_mask(parse_condition(text), _TABLE, {"lang": "eng", "year": 2020}).to_pylist()
    assert [row for row, passes in enumerate(mask) if passes] == rows


@given(st.text(max_size=60))
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    try:
        parse_condition(text)
    except InputError as error:
        assert str(error).startswith("--where")


_NAMES = st.sampled_from(["n", "m"])
_COMPARISON = st.tuples(_NAMES, st.sampled_from(["=", "!=", "<", ">="]), st.integers(-3, 3))
_TREE = st.recursive(
    _COMPARISON,
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), inner, inner) | st.tuples(st.just("not"), inner),
    max_leaves=8,
)


def _spell(tree: Any) -> str:
    if tree[0] == "not":
        return f"not ({_spell(tree[1])})"
    if tree[0] in ("and", "or"):
        return f"({_spell(tree[1])}) {tree[0]} ({_spell(tree[2])})"
    return f"{tree[0]} {tree[1]} {tree[2]}"


def _judge(tree: Any, row: dict[str, int]) -> bool:
    if tree[0] == "not":
        return not _judge(tree[1], row)
    if tree[0] in ("and", "or"):
        left, right = _judge(tree[1], row), _judge(tree[2], row)
        return left and right if tree[0] == "and" else left or right
    value, other = row[tree[0]], int(tree[2])
    return {"=": value == other, "!=": value != other, "<": value < other, ">=": value >= other}[tree[1]]


@given(_TREE, st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=6))
def test_conditions_mean_what_they_say(tree: Any, values: list[tuple[int, int]]) -> None:
    table = pa.table({"n": [n for n, _ in values], "m": [m for _, m in values]})
    mask = find_mask(parse_condition(_spell(tree)), table, {}).to_pylist()
    assert mask == [_judge(tree, {"n": n, "m": m}) for n, m in values]


def test_columns_are_told_by_their_types() -> None:
    struct = KINDS["struct"]
    schema = pa.schema([("picture", struct), ("sound", struct), ("text", pa.string()), ("audio_size", pa.int64())])
    with pytest.raises(InputError, match="2 columns that may be the recordings, 'picture', 'sound'"):
        find_columns(schema)
    features = b'{"info": {"features": {"picture": {"_type": "Image"}, "sound": {"_type": "Audio"}}}}'
    found = find_columns(schema.with_metadata({b"huggingface": features}), needs_text=True)
    assert (found.audio, found.text, found.length) == ("sound", "text", "audio_size")
    assert find_columns(schema, "picture").audio == "picture"
    with pytest.raises(InputError, match="has no column with texts"):
        find_columns(pa.schema([("a", pa.binary())]), needs_text=True)


def test_a_row_is_read_whatever_slice_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "SLICE_BYTES", 20_000)
    recordings = [make_wav(1600 + 10 * n) for n in range(30)]
    for kind in KINDS:
        path = write_rows(tmp_path / f"{kind}.parquet", ["x"] * 30, recordings=recordings, kind=kind, group=20)
        with open_file(path) as file:
            sizes = [batch.num_rows for _, batch in read_slices(file, 0, ["audio"])]
        assert sum(sizes) == 20 and max(sizes) <= 20_000 // 3_200
        numbers = list(range(30)) + random.Random(1).choices(range(30), k=20)
        for number in numbers:
            address = RowAddress(path, "audio", number // 20, number % 20)
            assert read_row(address.path) == recordings[number]


def test_a_row_is_a_recording_to_everybody(tmp_path: Path) -> None:
    recordings: list[bytes | None] = [make_wav(4_000), None, b""]
    path = write_rows(tmp_path / "a.parquet", ["x"] * 3, recordings=recordings)
    first, null, empty = (RowAddress(path, "audio", 0, row).path for row in range(3))
    assert probe(first).seconds == 0.25
    with AudioReader(first) as reader:
        assert np.array_equal(reader.read(0.1, 0.2), np.zeros(1600, np.float32))
    for broken, why in ((null, "is null"), (empty, "is empty")):
        with pytest.raises(InputError, match=why):
            probe(broken)
    with pytest.raises(InputError, match="has no row 7"):
        read_row(RowAddress(path, "audio", 0, 7).path)


def test_splits_are_told_by_folders_and_names() -> None:
    names = [Path("data/train-00000-of-00002.parquet"), Path("data/test.parquet"), Path("split=dev/0.parquet")]
    assert choose_split(names, "train") == names[:1]
    assert choose_split(names, "test") == names[1:2]
    assert choose_split(names, "dev") == names[2:]
    with pytest.raises(InputError, match="no split 'eval'"):
        choose_split(names, "eval")


def test_damage_in_a_row_group_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"audio": [make_wav(3_000) for _ in range(4)]})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)  # the first page's header
    path.write_bytes(data)
    with pytest.raises(InputError, match="row group 0 is damaged"):
        read_row(RowAddress(path, "audio", 0, 0).path)
