"""Batch buckets, and which rows of a batch lie side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def bucket_of(rows: int, smallest: int, largest: int) -> int:
    """The batch that `rows` images run as: the next power of two, at least `smallest`, at most `largest`.

    A CUDA graph has one batch, so that batches come in few sizes: at most log2(largest) + 2 of them. Of what is
    computed less than half is padding, and none in powers of two.
    """
    if not 1 <= rows <= largest:
        raise ValueError(f"{rows} rows do not fit into a batch of 1 ... {largest}")
    return max(smallest, min(largest, 1 << (rows - 1).bit_length()))


def runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Ascending row numbers as (first source row, first target row, how many), one for each unbroken stretch."""
    start = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place] != rows[place - 1] + 1:
            yield int(rows[start]), start, place - start
            start = place
