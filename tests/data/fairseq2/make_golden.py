"""Computes golden.json with fairseq2 and omnilingual-asr themselves, in an environment of their own (fairseq2 0.8.1 from
PyPI, whose sources are those of 027bdeb where these values come from; omnilingual-asr 81f51e2):

    python make_golden.py OMNILINGUAL_SOURCES > golden.json

No test runs it: fairseq2 pins a torch of its own.
"""

# ruff: noqa
# mypy: ignore-errors

import importlib
import json
import sys
import types

import numpy as np
from fairseq2.data.data_pipeline import DataPipeline, create_bucket_sizes, read_sequence


def shuffles():
    for window, seed in ((2, 1), (3, 2), (10, 2), (7, 261), (0, 2), (1000, 3), (50, 4294967295)):
        for count in (1, 6, 30, 53, 1003):
            out = [int(x) for x in read_sequence(list(range(count))).shuffle(window, seed).and_return()]
            yield {"window": window, "seed": seed, "count": count, "order": out}


def samples():
    for weights in ([0.5, 0.5], [0.7, 0.2, 0.1], [3.0, 1.0]):
        for seed in (1, 261):
            counts = [5 + 3 * i for i in range(len(weights))]
            sources = [read_sequence([100 * i + j for j in range(n)]).and_return() for i, n in enumerate(counts)]
            out = [int(x) for x in DataPipeline.sample(sources, weights, seed).and_return()]
            yield {"weights": weights, "seed": seed, "counts": counts, "order": out}


def make_lengths():
    """2,000 lengths of speech, samples: a log-normal distribution around 6 s."""
    rng = np.random.RandomState(0)
    return [int(x) for x in np.clip(np.exp(rng.normal(np.log(6.0), 0.6, 2000)) * 16000, 1600, 900000)]


def buckets():
    for most, longest, least, multiple in ((3_200_000, 800_000, 1, 8), (960_000, 320_000, 16_000, 1), (12, 6, 1, 2)):
        sizes = create_bucket_sizes(
            max_num_elements=most, max_seq_len=longest, min_seq_len=least, num_seqs_multiple_of=multiple
        )
        yield {"arguments": [most, longest, least, multiple], "buckets": [list(map(int, x)) for x in sizes]}


def batches(batching):
    lengths = make_lengths()
    rows = [{"id": i, "length": n} for i, n in enumerate(lengths)]
    for most, longest, multiple, largest, drop in (
        (3_200_000, 800_000, 8, None, False),
        (3_000_000, 480_000, 8, None, True),
        (1_600_000, 320_000, 1, 12, False),
    ):
        builder = read_sequence(rows).filter(lambda row: 1 <= row["length"] <= longest)
        builder = batching.add_length_batching(builder, 1, longest, most, multiple, drop, largest, "length")
        out = [[int(row["id"]) for row in batch] for batch in builder.and_return()]
        yield {"arguments": [most, longest, multiple, largest, drop], "batches": out}
    builder = batching.add_static_batching(read_sequence(list(range(53))), 8, True)
    yield {"arguments": "static 8, drop", "batches": [[int(x) for x in batch] for batch in builder.and_return()]}


def order(batching):
    """The whole way of a task: examples shuffled, batched, batches shuffled."""
    lengths = make_lengths()
    rows = [{"id": i, "length": n} for i, n in enumerate(lengths)]
    builder = read_sequence(rows).filter(lambda row: 1 <= row["length"] <= 800_000)
    builder = builder.shuffle(500, 2)
    builder = batching.add_length_batching(builder, 1, 800_000, 3_200_000, 8, False, None, "length")
    builder = builder.shuffle(20, 3)
    return [[int(row["id"]) for row in batch] for batch in builder.and_return()]


def weights(storage):
    import tempfile

    table = "corpus\tlanguage\thours\nmls\teng\t44.5\nmls\tdeu\t19.25\nmls\tfra\t3.5\ncv\teng\t20\ncv\tswa\t0.75\n"
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write(table)
        file.flush()
        for corpus, language in ((1.0, 1.0), (0.5, 0.5), (0.3, 0.7), (0.0, 0.0)):
            found = storage.MixtureParquetStorage.get_partition_weights_from_betas(file.name, corpus, language)
            listed = [[key.corpus, key.lang, value] for key, value in found.items()]
            yield {"beta_corpus": corpus, "beta_language": language, "table": table, "weights": listed}


def permutations():
    for count, seed in ((7, 2), (40, 123)):
        generator = np.random.RandomState(seed)
        yield {"count": count, "seed": seed, "turns": [generator.permutation(count).tolist() for _ in range(3)]}


def load(root, name):
    """A module of omnilingual-asr's sources, without what its packages import."""
    for package in ("omnilingual_asr", "omnilingual_asr.datasets", "omnilingual_asr.datasets.storage"):
        module = sys.modules.setdefault(package, types.ModuleType(package))
        module.__path__ = [f"{root}/{package.replace('.', '/')}"]
    return importlib.import_module(f"omnilingual_asr.datasets.{name}")


if __name__ == "__main__":
    import fairseq2

    batching = load(sys.argv[1], "utils.batching")
    storage = load(sys.argv[1], "storage.mixture_parquet_storage")
    json.dump(
        {
            "fairseq2": fairseq2.__version__,
            "lengths": make_lengths(),
            "shuffle": list(shuffles()),
            "sample": list(samples()),
            "buckets": list(buckets()),
            "batches": list(batches(batching)),
            "order": order(batching),
            "weights": list(weights(storage)),
            "permutations": list(permutations()),
        },
        sys.stdout,
    )
