"""What a worker does for the result cache: it hashes what the model is about to get, and looks that up first."""

from __future__ import annotations

import hashlib
import pickle
from functools import lru_cache
from typing import Any

import torch

from prefork.cache.keys import digest, make_second_key
from prefork.cache.pieces import Keeping, Piece, find_length
from prefork.cache.schema import Schema, SchemaError, find_schema
from prefork.cache.store import Reader
from prefork.engines.base import Engine, Job, LoadError, Segment, Tensors

open_reader = lru_cache(maxsize=1)(Reader)  # a worker keeps it open


def find_piece_schema(engine: Engine) -> Schema | None:
    """Of what its `finish` returns; None if nothing of it is to be kept. Raises LoadError."""
    if engine.piece is None:
        return None
    try:
        return find_schema(engine.piece)
    except SchemaError as error:
        raise LoadError(f"engine {engine.name}: its piece cannot be kept: {error}; fix it, or leave it out") from error


def digest_segment(engine: Engine, segment: Segment) -> bytes:
    """Of what its piece depends on; empty if that cannot be hashed, or nothing of the engine is kept."""
    if engine.piece is None:
        return b""
    try:
        return digest(engine.describe_segment(segment))
    except TypeError:
        return b""


def digest_tensors(tensors: Tensors) -> bytes:
    """Of names, types, shapes and every element, as they lie in memory."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(digest(name, str(tensor.dtype), tuple(tensor.shape)))
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


class PieceKeeper:
    """Looks up the segments of one task before they are computed, and describes what came of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._schema = find_piece_schema(engine)
        self._keys: dict[int, bytes] = {}  # second ones, by the number of the segment

    def find(self, number: int, job: Job, keeping: Keeping | None, tensors: Tensors) -> Piece | None:
        """What was kept of a segment that was prepared; if nothing was, it is to be computed."""
        if keeping is None or self._schema is None or not keeping.segment:
            return None
        key = make_second_key(keeping.engine, find_length(job), keeping.segment, digest_tensors(tensors))
        kept = open_reader(keeping.path).find(key) if keeping.path is not None else None
        if kept is not None:
            return Piece(kept.value, False, key, True, kept.seconds)
        self._keys[number] = key
        return None

    def describe(self, number: int, made: Any, seconds: float, repeatable: bool) -> Piece:
        """What `finish` made. repeatable: it would come out the same alone, whatever the generators are seeded with."""
        key = self._keys.pop(number, b"")
        if self._schema is None or not key:
            return Piece(pickle.dumps(made), seconds=seconds)
        try:
            return Piece(self._schema.encode(made), False, key if repeatable else b"", False, seconds)
        except SchemaError:  # it is not what the engine says; others need not know
            return Piece(pickle.dumps(made), seconds=seconds)


def load_piece(engine: Engine, piece: Piece) -> Any:
    """What `finish` returned."""
    schema = find_piece_schema(engine)
    return pickle.loads(piece.data) if piece.is_pickled or schema is None else schema.decode(piece.data)
