"""What a pipeline does, as its user says it: names, defaults and meanings are omnilingual-asr's and fairseq2's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefork.engines.batching import Batching, BatchingStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """How a data set becomes batches.

    audio_column, text_column, id_column: None where the schema tells; there need be no texts and no ids. split: only
    files of it. where: a condition on rows, as `--where` has it; it takes the place of `partition_filters`.

    min_audio_len, max_audio_len: samples at 16 kHz, both included; what is shorter or longer is left out.
    batching_strategy: LENGTH or STATIC. batch_size: of STATIC. max_num_elements: of a LENGTH batch once padded, rounded
    down to a multiple of max_audio_len. num_seqs_multiple_of, max_bucket_size, drop_remainder: as `Batching` has them.

    example_shuffle_window, batch_shuffle_window: how many examples, then batches, are shuffled at a time; 1: none, 0:
    all of them. fragment_shuffle_window: the same of fragments; 0: none, -1: all of them. seed: of fragments and
    examples; batches are shuffled with seed + 1. epochs: None for no end.

    fraction_of_files, nb_files, nb_fragments, nb_rows: only the first ones, before shuffling; nb_rows ends with the row
    group that reaches it. split_to_row_groups: False makes a fragment of each file.
    nb_prefetch: fragments read ahead. num_parallel_fragments: read at once. use_threads: pyarrow's threads for each.
    num_prefetch: batches decoded ahead; 0: none. max_num_batches: of an epoch.

    beta_corpus, beta_language: weights of partitions; see `find_weights`. hours: by (corpus, language), which are hive
    folders. sampling_seed: of the draws among partitions.
    rank, world_size: this process takes the fragments rank, rank + world_size, ... of the order that all agree on.

    Raises ValueError, with the option, the rule and the value.
    """

    audio_column: str | None = None
    text_column: str | None = None
    id_column: str | None = None
    split: str | None = None
    where: str | None = None
    min_audio_len: int = 1
    max_audio_len: int = 800_000
    batching_strategy: str = BatchingStrategy.LENGTH
    batch_size: int = 8
    max_num_elements: int = 3_200_000
    num_seqs_multiple_of: int = 8
    max_bucket_size: int | None = None
    drop_remainder: bool = False
    example_shuffle_window: int = 1
    batch_shuffle_window: int = 1000
    fragment_shuffle_window: int = 0
    seed: int = 2
    epochs: int | None = 1
    fraction_of_files: float | None = None
    nb_files: int | None = None
    nb_fragments: int | None = None
    nb_rows: int | None = None
    split_to_row_groups: bool = True
    nb_prefetch: int = 1
    num_parallel_fragments: int = 1
    use_threads: bool = False
    num_prefetch: int = 4
    max_num_batches: int | None = None
    beta_corpus: float | None = None
    beta_language: float | None = None
    hours: Mapping[tuple[str, str], float] | None = None
    sampling_seed: int = 261
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        strategy = str(self.batching_strategy).lower()
        if strategy not in list(BatchingStrategy):
            raise ValueError(f"`batching_strategy` must be LENGTH or STATIC, but is {self.batching_strategy!r} instead")
        object.__setattr__(self, "batching_strategy", strategy)
        least = {"example_shuffle_window": 0, "batch_shuffle_window": 0, "fragment_shuffle_window": -1, "seed": 0}
        least |= {"num_prefetch": 0, "nb_prefetch": 0, "rank": 0, "sampling_seed": 0}
        positive = ("batch_size", "epochs", "nb_files", "nb_fragments", "nb_rows", "num_parallel_fragments")
        least |= dict.fromkeys((*positive, "max_num_batches", "world_size"), 1)
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"`{name}` must be greater than or equal to {bound}, but is {value} instead")
        if self.rank >= self.world_size:
            raise ValueError(f"`rank` must be less than `world_size` ({self.world_size}), but is {self.rank} instead")
        if self.fraction_of_files is not None and not 0 < self.fraction_of_files <= 1:
            raise ValueError(
                f"`fraction_of_files` must be greater than 0 and at most 1, but is {self.fraction_of_files} instead"
            )
        given = [self.beta_corpus is not None, self.beta_language is not None, self.hours is not None]
        if any(given) and not all(given):
            raise ValueError("`beta_corpus`, `beta_language` and `hours` must be given together, or none of them")
        self.make_batching()

    def make_batching(self) -> Batching:
        """As `prefork.engines.batching` takes it."""
        limits = {"min_audio_len": self.min_audio_len, "max_audio_len": self.max_audio_len}
        if self.batching_strategy == BatchingStrategy.STATIC:
            return Batching(batch_size=self.batch_size, drop_remainder=self.drop_remainder, **limits)
        batching = Batching(
            max_num_elements=self.max_num_elements,
            num_seqs_multiple_of=self.num_seqs_multiple_of,
            max_bucket_size=self.max_bucket_size,
            drop_remainder=self.drop_remainder,
            **limits,
        )
        return batching.resolve(0)[0]

    def list_warnings(self) -> list[str]:
        """What the user should know of these values."""
        found = []
        if self.batching_strategy == BatchingStrategy.LENGTH and self.max_num_elements % self.max_audio_len:
            rounded = self.make_batching().max_num_elements
            found.append(
                f"`max_num_elements` is rounded to {rounded}, a multiple of `max_audio_len` ({self.max_audio_len})"
            )
        return found

    def describe(self) -> dict[str, Any]:
        """What the order of batches depends on, in JSON values."""
        idle = {"num_prefetch", "nb_prefetch", "num_parallel_fragments", "use_threads", "hours", "epochs"}
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in idle}
        return {**found, "hours": sorted((*key, value) for key, value in (self.hours or {}).items())}

    def replace(self, **values: Any) -> PipelineOptions:
        return replace(self, **values)
