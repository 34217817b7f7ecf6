"""What results are kept under: whatever may change a bit of them changes the key, and nothing else does."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from prefork.cache import identity
from prefork.cache.identity import KnownModels, Surroundings, identify, make_models_key
from prefork.cache.keys import digest
from prefork.cache.pieces import DescribedSegment, Keeping, Piece, PieceCache, SplitJob, StageCache
from prefork.cache.store import Entry, Kind, Limits, Store
from prefork.engines.base import Engine, Job, LoadError, Segment, Tensors
from prefork.engines.text.document import Document
from prefork.fingerprint import note_files
from prefork.installation import list_versions
from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Request, decide
from prefork.platform_matrix.systems import SYSTEM
from prefork.pool.jobs import Course, JobRun
from prefork.pool.pipeline import Stage
from prefork.pool.tasks import Task
from prefork.work.keeping import PieceKeeper, digest_segment, digest_tensors, find_piece_schema, load_piece, open_reader
from prefork.work.torch_state import reseed, watch_draws

HERE = Surroundings("cpu", (), 1, None)
KNOWN = {"engine": "ctc", "model": {"sha256": "a"}, "dtype": "float32"}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = Store(tmp_path / "results" / "results.sqlite", Limits(), pytest.fail)
    yield store
    store.close()
    open_reader.cache_clear()


# -- engines ---------------------------------------------------------------------------------------------------------


def test_settings_model_threads_device_and_variables_are_part_of_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    known = identify(KNOWN, "ctc", HERE)
    assert identify(dict(KNOWN), "ctc", HERE) == known
    others = [
        identify({**KNOWN, "dtype": "int8"}, "ctc", HERE),
        identify({**KNOWN, "model": {"sha256": "b"}}, "ctc", HERE),
        *(identify(KNOWN, "ctc", replace(HERE, **one)) for one in ({"threads": 2}, {"device": "cuda"}, {"longest": 9})),
        identify(KNOWN, "ctc", replace(HERE, names=("NVIDIA H200",))),
    ]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    others.append(identify(KNOWN, "ctc", HERE))
    assert len({known, *others}) == 1 + len(others)


def test_versions_and_the_processor_are_part_of_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {identity.describe_machine.__wrapped__()}
    assert identity.describe_machine.__wrapped__() in found
    with monkeypatch.context() as patch:
        rows = list_versions()
        assert {"torch", "transformers", "stanza", "av", "numpy"} <= {name for name, _ in rows}
        changed = [(name, "0" if name == "torch" else version) for name, version in rows]
        patch.setattr(identity, "list_versions", lambda: changed)
        found.add(identity.describe_machine.__wrapped__())
    monkeypatch.setattr(SYSTEM, "read_processor", lambda: "flags: avx512")
    found.add(identity.describe_machine.__wrapped__())
    assert len(found) == 3


def test_every_line_of_a_package_s_source_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        shutil.copytree(Path(identity.__file__).parent, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    digests = identity._digest_files.__wrapped__
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    with (tmp_path / "two" / "keys.py").open("a") as file:
        file.write("# more\n")
    assert digests(tmp_path / "one") != digests(tmp_path / "two")
    module = tmp_path / "single.py"
    module.write_text("x = 1\n")
    first = digests(module)
    module.write_text("x = 2\n")
    assert digests(module) != first


@pytest.mark.usefixtures("script_engine")
def test_another_package_s_engine_is_known_by_its_own_source_and_prefork_s() -> None:
    ours, theirs = (identity.digest_source.__wrapped__(name) for name in ("ctc", "script"))
    assert ours != theirs and identity.digest_source.__wrapped__("stanza") == ours
    with pytest.raises(LoadError, match="no engine named 'nobody'"):
        identity.digest_source("nobody")


def test_models_are_known_as_long_as_no_file_of_theirs_changes_comes_or_goes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1" * 100)
    noted = {"mine": note_files({"engine": "mine", "files": folder, "sizes": (1, 2)})}
    known = KnownModels(noted, 100, None)
    again = KnownModels.load(known.dump())
    assert again is not None and again.fingerprints["mine"]["files"] == noted["mine"]["files"]
    data = known.dump()
    (folder / "vocabulary").write_text("a")
    assert KnownModels.load(data) is None
    data = known.dump()
    os.utime(folder / "weights", ns=(1, 1))
    assert KnownModels.load(data) is None


def test_options_and_places_of_models_are_part_of_what_they_are_known_by(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        make_models_key([("ctc", {})], "cpu"),
        make_models_key([("ctc", {"model": "a"})], "cpu"),
        make_models_key([("stanza", {})], "cpu"),
    }
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    keys.add(make_models_key([("ctc", {})], "cpu"))
    assert len(keys) == 4
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert make_models_key([("ctc", {})], "cpu") in keys


# -- segments --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sum:
    total: float
    words: tuple[str, ...]


class Adder(Engine):
    """Adds up numbers, which are its recording; keeps what it makes."""

    name = "adder"
    piece: ClassVar[Any] = Sum

    def load(self) -> Any:
        return None

    def split(self, job: Job, document: Document) -> Sequence[Segment]:
        return [Segment(0, 0.0, 1.0, ("a",))]

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        return {"numbers": torch.ones(3)}

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        return batch

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        return Sum(float(output["numbers"].sum()), segment.content)

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        return document


TENSORS: list[Mapping[str, torch.Tensor]] = [
    {"a": torch.zeros(4)},
    {"a": torch.zeros(2, 2)},
    {"a": torch.zeros(4, dtype=torch.bfloat16)},
    {"a": torch.zeros(4, dtype=torch.int32)},
    {"a": torch.zeros(3)},
    {"b": torch.zeros(4)},
    {"a": torch.zeros(4), "b": torch.zeros(0)},
    {"a": torch.tensor([0.0, 0.0, 1e-45, 0.0])},
    {"a": torch.tensor(True), "b": torch.tensor(0)},
    {},
]


def test_every_bit_of_what_the_model_gets_is_part_of_the_key() -> None:
    assert len({digest_tensors(one) for one in TENSORS}) == len(TENSORS)
    assert digest_tensors({"a": torch.zeros(4), "b": torch.ones(1)}) == digest_tensors(
        {"b": torch.ones(1), "a": torch.zeros(4)}
    )
    wide = torch.arange(12.0).reshape(3, 4)
    assert digest_tensors({"a": wide.T}) == digest_tensors({"a": wide.T.contiguous()}) != digest_tensors({"a": wide})


def test_what_a_segment_asks_counts_and_not_where_in_the_job_it_stands() -> None:
    engine = Adder()
    segment = Segment(0, 0.0, 1.0, ("a",))
    assert digest_segment(engine, segment) == digest_segment(engine, replace(segment, index=7))
    others = [replace(segment, start=0.5), replace(segment, end=2.0), replace(segment, content=("b",))]
    assert len({digest_segment(engine, one) for one in (segment, *others)}) == 4
    assert digest_segment(engine, replace(segment, content=object())) == b""  # nothing is kept of it


def compute(keeper: PieceKeeper, store: Store, tensors: Tensors, repeatable: bool = True, **changes: Any) -> bool:
    """Whether a segment was found; else it is computed and kept, if it may be."""
    job = replace(Job("j", Path("j.txt"), Path("j.wav"), seconds=1.0), **changes)
    keeping = Keeping(store.path, digest("engine"), digest("segment"))
    found = keeper.find(0, job, keeping, tensors)
    if found is None:
        piece = keeper.describe(0, Sum(3.0, ("a",)), 0.5, repeatable)
        assert load_piece(Adder(), piece) == Sum(3.0, ("a",))
        if piece.key:
            store.put(Entry(piece.key, Kind.PIECE, piece.data, piece.seconds))
            time.sleep(0.4)
        return False
    assert load_piece(Adder(), found) == Sum(3.0, ("a",)) and found.seconds == 0.5
    return True


def test_a_piece_is_found_by_what_it_was_made_from_alone(store: Store) -> None:
    keeper = PieceKeeper(Adder())
    tensors = {"numbers": torch.ones(3)}
    assert not compute(keeper, store, tensors, repeatable=False)
    assert not compute(keeper, store, tensors)
    assert compute(keeper, store, {"numbers": torch.ones(3)}, id="k", source=Path("k.txt"), media=Path("k.mp3"))
    assert not compute(keeper, store, {"numbers": torch.ones(4)})
    assert not compute(keeper, store, tensors, seconds=2.0, id="l")


def test_who_draws_random_numbers_is_noticed() -> None:
    import random

    import numpy as np

    reseed(7)
    with watch_draws() as draws:
        torch.zeros(3).add(1)
    assert not draws.any
    for draw in (lambda: torch.rand(1), random.random, np.random.rand):
        reseed(7)
        with watch_draws() as draws:
            draw()
        assert draws.any


def test_what_is_not_of_the_declared_type_is_passed_on_and_not_kept(store: Store) -> None:
    keeper = PieceKeeper(Adder())
    job, keeping = Job("j", Path("j")), Keeping(store.path, b"", digest("segment"))
    assert keeper.find(0, job, keeping, {}) is None
    piece = keeper.describe(0, {"total": 3}, 0.5, True)
    assert piece.key == b"" and pickle.loads(piece.data) == {"total": 3} == load_piece(Adder(), piece)


def test_a_type_that_cannot_be_kept_is_refused_with_the_engine_s_name() -> None:
    class Loose(Adder):
        piece = object

    with pytest.raises(LoadError, match="engine adder: its piece cannot be kept"):
        find_piece_schema(Loose())


# -- from first keys to pieces ---------------------------------------------------------------------------------------


def open_stage(store: Store, job: Job, looks: bool = True) -> StageCache:
    stage = PieceCache(store, looks, lambda *_: digest("engine")).open(job, 0)
    assert stage is not None
    return stage


def test_a_first_key_leads_to_a_piece_unless_a_file_was_changed_meanwhile(store: Store, tmp_path: Path) -> None:
    media = tmp_path / "a.wav"
    media.write_bytes(b"sound")
    job = Job("a", media, media, seconds=1.0).note_files()
    split = SplitJob((DescribedSegment(1.0, 0, b"", digest("segment")),), True, digest("sound"))
    piece = PieceKeeper(Adder())
    piece._keys[0] = digest("second")
    made = piece.describe(0, Sum(3.0, ()), 0.5, True)
    for edited in (True, False):
        stage = open_stage(store, job)
        assert stage.find(split) == [None]
        if edited:
            os.utime(media, ns=(1, 1))
        stage.keep(0, made)
        stage.close()
        time.sleep(0.4)
        job = job.note_files()
    (found,) = open_stage(store, job).find(split)
    assert found is not None and found.found and load_piece(Adder(), found) == Sum(3.0, ())
    assert open_stage(store, job, looks=False).find(split) == [None]
    assert open_stage(store, job).find(replace(split, recording=digest("other"))) == [None]
    assert open_stage(store, job).find(replace(split, recording=b"")) == [None]
    assert open_stage(store, replace(job, seconds=2.0)).find(split) == [None]
    assert PieceCache(None).open(job, 0) is None and sys.modules.get("torch")


@pytest.mark.parametrize("failed", ["", "an ECC error"])
def test_what_another_device_computes_than_the_cache_knows_of_is_not_kept(
    failed: str, store: Store, tmp_path: Path
) -> None:
    """Where a GPU is given up in a run, the CPU may go on: what it makes must not be found as the GPU's."""
    gpu = Device("cuda", "NVIDIA H200", 10**11, 10**11, "9.0", failed=failed)
    plan = decide(replace(read_facts(), devices=Devices("2", ("cuda",), (gpu,))), Request(("ctc",)))
    tasks: list[Task] = []
    supervisor: Any = SimpleNamespace(plan=plan, submit=tasks.append)
    remote: Any = None
    course = Course((Stage("ctc"),), cache=PieceCache(store, True, lambda *_: digest("engine")))
    source = tmp_path / "a.txt"
    source.write_text("one")
    JobRun(supervisor, remote, course, Job("a", source).note_files(), 0, lambda _: None).start()
    split = SplitJob((DescribedSegment(1.0, 0, b"", digest("segment")),), True)
    tasks[0].done(pickle.dumps(split), None)
    tasks[1].pieces[0] = pickle.dumps(Piece(b"made", False, digest("its second key")))
    tasks[1].done(b"", None)
    time.sleep(0.4)
    assert (store.open_reader().find(digest("its second key")) is None) == bool(failed)
    (piece,) = tasks[2].arguments[4]
    assert (piece.data, bool(piece.key)) == (b"made", not failed)  # the output is made of it all the same
