"""Buckets: which lengths go together, and how many of each."""

from __future__ import annotations

from collections.abc import Sequence

from prefork.engines.batching.settings import Batching, check_least, explain_value


def create_bucket_sizes(
    *, max_num_elements: int, max_seq_len: int, min_seq_len: int = 1, num_seqs_multiple_of: int = 1
) -> Sequence[tuple[int, int]]:
    """(batch size, longest sequence) of each bucket, from short to long, none with more than max_num_elements once
    padded. There is one bucket for every batch size that max_num_elements allows.

    min_seq_len: no buckets for what is shorter. num_seqs_multiple_of: batch sizes above it are lowered to a multiple.
    Raises ValueError. Source: fairseq2's function of this name.

    >>> create_bucket_sizes(max_num_elements=12, max_seq_len=6)
    [(12, 1), (6, 2), (4, 3), (3, 4), (2, 6)]
    """
    if max_seq_len > max_num_elements:
        raise ValueError(
            explain_value("max_seq_len", f"less than or equal to `max_num_elements` ({max_num_elements})", max_seq_len)
        )
    check_least("min_seq_len", min_seq_len)
    if min_seq_len > max_seq_len:
        raise ValueError(
            explain_value("min_seq_len", f"less than or equal to `max_seq_len` ({max_seq_len})", min_seq_len)
        )
    check_least("num_seqs_multiple_of", num_seqs_multiple_of)
    if max_num_elements % max_seq_len:
        raise ValueError(
            explain_value("max_num_elements", f"a multiple of `max_seq_len` ({max_seq_len})", max_num_elements)
        )
    buckets: list[tuple[int, int]] = []
    seq_len = 0
    while seq_len < max_seq_len:
        batch_size = max_num_elements // (seq_len + 1)
        seq_len = max_num_elements // batch_size  # the longest of which that many fit
        if seq_len >= min_seq_len:
            buckets.append((crop(batch_size, num_seqs_multiple_of), seq_len))
    return buckets


def crop(count: int, multiple: int) -> int:
    return count - count % multiple if count > multiple else count


def list_buckets(batching: Batching, max_num_elements: int) -> Sequence[tuple[int, int]]:
    """Buckets for lengths up to max_audio_len. What is longer than max_num_elements goes alone."""
    longest = min(batching.longest, max_num_elements)
    buckets = list(
        create_bucket_sizes(
            max_num_elements=max_num_elements - max_num_elements % longest,
            max_seq_len=longest,
            min_seq_len=min(batching.min_audio_len, longest),
            num_seqs_multiple_of=batching.num_seqs_multiple_of,
        )
    )
    if longest < batching.longest:
        buckets.append((1, batching.longest))
    most = batching.max_bucket_size
    if most is None:
        return buckets
    # omnilingual-asr leaves fairseq2 without a bucket where all are too large; the longest segments need one.
    return [bucket for bucket in buckets if bucket[0] <= most] or [(most, batching.longest)]
