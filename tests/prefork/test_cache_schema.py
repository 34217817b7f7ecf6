"""Values that are kept come back as they were, or are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.cache.keys import digest
from prefork.cache.schema import SchemaError, find_schema
from prefork.cache.store import Kind
from prefork.engines.audio.selection import Selection
from prefork.engines.ctc.recovery import Emission
from prefork.engines.speakers.chunks import BlockActivity
from prefork.engines.text import formats
from prefork.engines.text.document import Character, Document, Timing, Token, TokenKind, Turn, Utterance, Word

NUMBERS = st.floats(allow_nan=False) | st.integers(0, 10**6)
TEXTS = st.text(st.characters())  # surrogates too, as file names have them
CHARACTERS = st.builds(Character, TEXTS, NUMBERS, NUMBERS, NUMBERS)
WORDS = st.builds(
    Word,
    TEXTS,
    st.none() | NUMBERS,
    st.none() | NUMBERS,
    st.none() | NUMBERS,
    st.sampled_from(Timing),
    st.lists(CHARACTERS, max_size=2).map(tuple),
)
TOKENS = st.builds(Token, TEXTS, st.sampled_from(TokenKind), run=st.integers(), source=st.none() | st.just((1, 2)))
UTTERANCES = st.builds(
    Utterance,
    TEXTS,
    st.lists(WORDS, max_size=3).map(tuple),
    st.none() | TEXTS,
    tokens=st.lists(TOKENS, max_size=2).map(tuple),
    events=st.lists(st.tuples(st.integers(), TEXTS), max_size=2).map(tuple),
)


@given(st.builds(Document, st.lists(UTTERANCES, max_size=3).map(tuple), TEXTS, warnings=st.just(("low",))))
def test_any_document_comes_back_equal_and_of_the_same_types(document: Document) -> None:
    schema = find_schema(Document)
    back = schema.decode(schema.encode(document))
    assert back == document and repr(back) == repr(document)  # 1 is not 1.0 in a file
    assert digest(back) == digest(document)


def test_what_is_no_number_comes_back_too() -> None:
    schema = find_schema(Turn)
    back = schema.decode(schema.encode(Turn("S00", math.nan, -math.inf)))
    assert math.isnan(back.start) and back.end == -math.inf


def test_arrays_and_bytes_come_back() -> None:
    schema = find_schema(BlockActivity)
    block = BlockActivity(np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((2, 4), np.float16), None)
    back = schema.decode(schema.encode(block))
    assert back.scores is None and back.voices.dtype == np.float16
    np.testing.assert_array_equal(back.active, block.active)
    assert back.active.flags.writeable
    emission = Emission(3, bytes(range(256)))
    assert find_schema(Emission).decode(find_schema(Emission).encode(emission)) == emission


@dataclass(frozen=True)
class Pair:
    left: int
    right: str | None = None


@dataclass
class Loose:
    left: int


@pytest.mark.parametrize("value", [Pair("1"), Pair(True), Pair(1.0), Loose(1), (1, "a"), None, Pair(1, b"a")])  # type: ignore[arg-type]
def test_a_value_that_is_not_of_its_type_is_refused(value: Any) -> None:
    with pytest.raises(SchemaError):
        find_schema(Pair).encode(value)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b"[1,2,3]", b'["1","a"]', b"[1.5,null]", b"[true,null]", b"[" * 100_000, b"\xff"]
)
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    with pytest.raises(SchemaError):
        find_schema(Pair).decode(data)


@pytest.mark.parametrize("kind", [Loose, Any, object, int | str, dict[int, str], set[int], list, Path])
def test_a_type_that_could_be_anything_has_no_schema(kind: Any) -> None:
    with pytest.raises(SchemaError):
        find_schema(kind)


def test_a_read_transcript_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("It wasn't me!\nWho was it?\n")
    document = replace(formats.read(path), heard=(Word("é", 0, 1.5),))
    schema = find_schema(Document)
    assert schema.decode(schema.encode(document)) == document


DISTINCT: list[tuple[Any, ...]] = [
    (),
    (None,),
    (False,),
    (0,),
    (0.0,),
    (-0.0,),
    ("",),
    (b"",),
    ("0",),
    ((),),
    ([],),
    ({},),
    ((), ()),
    (("a", "b"),),
    ("a", "b"),
    ("ab",),
    ("a:b",),
    ({"a": "b"},),
    (Selection(),),
    (Selection(channels=()),),
    (Timing.NONE,),
    ("none",),
    (Kind.LINK,),
    (Path("a"),),
    ("\ud800",),
]


def test_different_values_have_different_keys() -> None:
    keys = [digest(*values) for values in DISTINCT]
    assert len(set(keys)) == len(keys)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [object(), {1, 2}, Selection, lambda: 1, np.zeros(2)])
def test_what_could_look_the_same_and_be_different_is_part_of_no_key(value: Any) -> None:
    with pytest.raises(TypeError):
        digest(value)
