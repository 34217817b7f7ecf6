"""Data sets as batches: nothing is lost or repeated, wherever one goes on, whoever decodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from prefork import InputError, WorkerDied
from prefork.data import Batch, DataPipeline, PipelineOptions, SpeechDataset
from prefork.data.decoding import decode_batch
from prefork.data.memory import ROW_BYTES, plan_memory
from prefork.data.pipeline import _EpochReader, _Waiting
from prefork.engines.audio.reader import AudioReader
from prefork.engines.audio.whole import decode
from tests.prefork.data_sets import make_wav, write_rows

SMALL = PipelineOptions(max_audio_len=10_000, max_num_elements=30_000, example_shuffle_window=5, batch_shuffle_window=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 rows in four files of two languages, row groups of 5; row n has n samples more than 1,600."""
    root = tmp_path_factory.mktemp("corpus")
    start = 0
    for name, count in (("eng/a", 12), ("eng/b", 13), ("deu/a", 2), ("deu/b", 20)):
        language, file = name.split("/")
        numbers = range(start, start + count)
        recordings = [make_wav(1600 + n) for n in numbers]
        more: dict[str, Any] = {"id": [f"row{n}" for n in numbers], "audio_size": [1600 + n for n in numbers]}
        path = root / f"corpus=x/language={language}/{file}.parquet"
        write_rows(path, [f"text {n}" for n in numbers], recordings=recordings, kind="struct", group=5, more=more)
        start += count
    return root


@pytest.fixture(scope="module")
def pipeline(corpus: Path) -> Iterator[DataPipeline]:
    with DataPipeline(corpus, SMALL, workers=2, id_column="id") as pipeline:
        list(pipeline)  # starts the workers
        yield pipeline


def _list_ids(batches: list[Batch]) -> list[tuple[str | None, ...]]:
    return [batch.ids for batch in batches]


def test_each_row_comes_once_with_its_samples_and_its_text(pipeline: DataPipeline) -> None:
    batches = list(pipeline)
    assert sorted(str(id) for batch in batches for id in batch.ids) == sorted(f"row{n}" for n in range(47))
    for batch in batches:
        assert batch.seqs.dtype == np.float32 and batch.seqs.shape == (len(batch.ids), batch.seq_lens.max())
        assert batch.seqs.size <= SMALL.max_num_elements
        assert [f"row{n - 1600}" for n in batch.seq_lens] == list(batch.ids)
        assert [f"text {n - 1600}" for n in batch.seq_lens] == list(batch.texts)


def test_a_state_goes_on_where_it_was_taken(pipeline: DataPipeline, corpus: Path) -> None:
    whole = [(batch.ids, pipeline.state_dict()) for batch in pipeline]
    assert all(type(value) is int for _, state in whole for value in state.values())
    with DataPipeline(corpus, SMALL, workers=1, id_column="id") as other:
        for number in (1, len(whole) - 2):
            other.load_state_dict(whole[number][1])
            assert _list_ids(list(other)) == [ids for ids, _ in whole[number + 1 :]]
    with pytest.raises(ValueError, match="of another data set, or of other options"):
        DataPipeline(corpus, SMALL, id_column="id", seed=3).load_state_dict(whole[0][1])


def test_the_number_of_workers_and_what_is_read_ahead_changes_nothing(pipeline: DataPipeline, corpus: Path) -> None:
    ahead = {"nb_prefetch": 3, "num_parallel_fragments": 2, "num_prefetch": 0, "use_threads": True}
    with DataPipeline(corpus, SMALL, workers=1, id_column="id", **ahead) as other:
        for one, two in zip(pipeline, other, strict=True):
            assert one.ids == two.ids and np.array_equal(one.seqs, two.seqs)


_WINDOWS = st.sampled_from([0, 1, 2, 7, 100])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {
            "example_shuffle_window": _WINDOWS,
            "batch_shuffle_window": _WINDOWS,
            "fragment_shuffle_window": st.sampled_from([-1, 0, 3]),
            "split_to_row_groups": st.booleans(),
            "seed": st.integers(0, 2**32 - 1),
            "max_num_batches": st.sampled_from([None, 4]),
            "hours": st.sampled_from([None, {("x", "eng"): 3.0, ("x", "deu"): 1.0}]),
        }
    ),
    st.data(),
)
def test_skipping_batches_changes_nothing_of_those_that_follow(
    corpus: Path, values: dict[str, Any], data: st.DataObject
) -> None:
    if values["hours"]:
        values |= {"beta_corpus": 0.5, "beta_language": 0.5}
    pipeline = DataPipeline(corpus, SMALL, **values)
    whole = [[row for _, row in batch] for batch in _EpochReader(pipeline, 0, 0).read()]
    if not values["hours"] and values["max_num_batches"] is None:
        assert len({(row.text) for batch in whole for row in batch}) == sum(map(len, whole)) == 47
    skipped = data.draw(st.integers(0, len(whole)))
    rest = [[row for _, row in batch] for batch in _EpochReader(pipeline, 0, skipped).read()]
    assert rest == whole[skipped:]


def test_epochs_are_whole_and_differ(corpus: Path) -> None:
    with DataPipeline(corpus, SMALL, workers=1, id_column="id", epochs=2) as pipeline:
        batches = list(pipeline)
    half = len(batches) // 2
    first, second = _list_ids(batches[:half]), _list_ids(batches[half:])
    assert sorted(id for ids in first for id in ids if id) == sorted(id for ids in second for id in ids if id)
    assert first != second


def test_processes_share_the_fragments(corpus: Path) -> None:
    def list_texts(rank: int, size: int) -> list[str | None]:
        pipeline = DataPipeline(corpus, SMALL, rank=rank, world_size=size, fragment_shuffle_window=-1)
        return [row.text for batch in _EpochReader(pipeline, 0, 0).read() for _, row in batch]

    shares = [list_texts(rank, 3) for rank in range(3)]
    assert sorted(str(text) for share in shares for text in share) == sorted(f"text {n}" for n in range(47))
    with pytest.raises(InputError, match=r"`world_size` must be at most the number of fragments \(11\), but is 12"):
        DataPipeline(corpus, SMALL, world_size=12)


def test_rows_that_cannot_be_decoded_cost_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recordings = [make_wav(1600), b"no sound", None, make_wav(1700), make_wav(0), make_wav(1800)]
    sizes = {"audio_size": [1600, 1600, 1600, 1700, 1600, 1800]}
    write_rows(tmp_path / "with.parquet", ["a"] * 6, recordings=recordings, more=sizes)
    write_rows(tmp_path / "without.parquet", ["a"] * 6, recordings=recordings)  # their lengths are measured
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with DataPipeline(tmp_path, SMALL, workers=1) as pipeline:
        batches = list(pipeline)
    assert sorted(n for batch in batches for n in batch.seq_lens) == [1600, 1600, 1700, 1700, 1800, 1800]
    errors = {path: reason for batch in batches for path, reason in batch.errors.items()}
    assert len(errors) == 3 and any("is null" in reason for reason in errors.values())
    assert "cut.parquet" in caplog.text and "is left out" in caplog.text


def test_rows_are_decoded_one_by_one_where_a_worker_has_died_of_them(corpus: Path) -> None:
    recordings = [make_wav(1600), b"no sound", make_wav(1700)]
    content = np.frombuffer(b"".join(recordings), np.uint8)
    sizes, paths = [*map(len, recordings), -1], ["a/x.parquet/audio/0/0"] * 4
    with DataPipeline(corpus, SMALL, workers=1) as pipeline:
        future: Future[Any] = pipeline.runtime.submit(os.abort)
        with pytest.raises(WorkerDied):
            future.result()
        decoded = pipeline._decode_apart(_Waiting(future, content, sizes, (), paths))
        together = pipeline.runtime.submit(decode_batch, content, sizes, paths).result()
    assert np.array_equal(decoded.seqs, together.seqs) and decoded.errors == together.errors
    assert list(decoded.seq_lens) == [1600, 1700] and sorted(decoded.errors) == [1, 3]


def test_what_cannot_be_used_is_refused(tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="none of its 47 rows passes"):
        list(DataPipeline(corpus, SMALL, min_audio_len=9_000))
    with pytest.raises(InputError, match="has no parquet files"):
        DataPipeline(tmp_path)
    with pytest.raises(InputError, match="`hours` names none"):
        DataPipeline(corpus, hours={("y", "eng"): 1.0}, beta_corpus=1.0, beta_language=1.0)
    DataPipeline(corpus, example_shuffle_window=0)
    assert "`example_shuffle_window` is 0: the whole data set waits in memory" in caplog.text


def test_it_is_a_data_set_of_torchs(corpus: Path) -> None:
    dataset = SpeechDataset(corpus, SMALL, workers=1)
    try:
        batches = list(DataLoader(dataset, batch_size=None, num_workers=0))
        assert sum(len(batch.seqs) for batch in batches) == 47
        assert all(isinstance(batch.seqs, torch.Tensor) for batch in batches)
        state = dataset.state_dict()
        dataset.load_state_dict({**state, "batches": 1})
        assert sum(len(batch.seqs) for batch in dataset) == 47 - len(batches[0].seqs)
    finally:
        dataset.close()


def test_up_to_the_decoded_audio_it_needs_no_torch() -> None:
    code = "import sys; from prefork.data import DataPipeline; assert not {'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_whole_recordings_are_decoded_as_the_reader_decodes_them(shared: Path) -> None:
    samples = sorted((Path(__file__).parents[2] / "prefork/samples").glob("*.flac"))
    for path in [*samples[:2], shared / "data/jfk.flac", shared / "data/aligned-tts/slt00.flac"]:
        with AudioReader(path) as reader:
            assert np.array_equal(decode(path.read_bytes(), path), reader.read(0.0, float("inf")))


def test_the_memory_that_a_pipeline_takes_is_known_before(pipeline: DataPipeline, corpus: Path) -> None:
    small, large = (
        plan_memory(
            DataPipeline(corpus, SMALL, max_num_elements=10_000, batch_shuffle_window=1, example_shuffle_window=window),
            processes=0,
        )
        for window in (2, 40)
    )
    whole = sum(fragment.audio_bytes + ROW_BYTES * fragment.rows for fragment in pipeline.data_set.fragments)
    assert small.waiting < large.waiting <= whole + 47
    assert small.total == small.waiting + small.loading + small.decoded
