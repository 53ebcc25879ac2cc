"""Queries of a batch as segments that see one set of blocks each.

What a token at position ``t`` sees depends on its block ``t // granule`` alone:

::

    block     0   1   2   3   4   5   6          sinks 1, recent 2: a token of block 6 sees 0, 5 and 6
              S   .   .   .   .   R   R
    table     0   5   6                          ... and the kernel is given a shorter text that is just that

Positions below ``free`` (a prompt that is attended to in full, or all that fits) see everything before them. So a
request's new tokens are at most one segment in front of ``free`` and one for each block behind it; each becomes a
request of its own for a kernel that knows nothing of any of this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """All segments of a batch, in the order of their tokens."""

    request: Ints
    """[S] row of the batch."""
    queries: Ints
    """[S] new tokens."""
    length: Ints
    """[S] tokens that its last query sees, itself included."""
    columns: Ints
    """[S, W] columns of the request's block table, in order; those past the length are 0."""


def split(
    start: Ints, stop: Ints, free: Ints, *, sinks: int, recent: int | Ints, granule: int, block_size: int | None = None
) -> Segments:
    """Segments of requests whose new tokens are at positions ``start[i] <= t < stop[i]``.

    ``sinks`` and ``recent`` (of all requests, or ``[R]``) are blocks of ``granule`` tokens; columns are of blocks of
    ``block_size`` (a divisor of the granule, by default the same).
    """
    size = block_size or granule
    ratio = granule // size
    recent = np.broadcast_to(np.asarray(recent, dtype=np.int64), start.shape)
    border = np.maximum(free, (sinks + recent) * granule)  # what fits is all that there is
    front = np.clip(np.minimum(stop, border) - start, 0, None)
    begin = np.maximum(start, border)
    counts = np.where(begin < stop, (stop - 1) // granule - begin // granule + 1, 0)
    is_front = front > 0
    total = is_front + counts
    request = np.repeat(np.arange(len(start)), total)
    # number of each segment within its request, the front one being -1
    index = np.arange(len(request)) - np.repeat(np.cumsum(total) - total, total) - is_front[request]
    behind = index >= 0
    block = begin[request] // granule + index
    low = np.where(behind, np.maximum(begin[request], block * granule), start[request])
    high = np.where(behind, np.minimum(stop[request], (block + 1) * granule), np.minimum(stop, border)[request])
    first = np.where(behind, np.maximum(sinks, block - recent[request] + 1), sinks)  # oldest block but for the sinks
    length = high - (first - sinks) * granule
    width = int(-(-length.max() // size)) if len(length) else 0
    place = np.arange(width)[None]
    columns = np.where(place < sinks * ratio, place, place + ((first - sinks) * ratio)[:, None])
    columns[place * size >= length[:, None]] = 0
    return Segments(request, high - low, length, columns)
