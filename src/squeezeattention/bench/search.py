"""The largest batch that fits: doubled until memory runs out, then halved in between."""

from __future__ import annotations

from collections.abc import Callable

from .run import Run


def largest_batch(attempt: Callable[[int], Run], *, start: int = 1, most: int = 1024) -> list[Run]:
    """All runs of the search; the largest batch is that of the best one that did not fail.

    ``attempt`` measures one batch. Stops where two neighbours differ by an eighth or by one, or at ``most``.
    """
    runs: list[Run] = []

    def fits(batch: int) -> bool:
        runs.append(attempt(batch))
        return runs[-1].failed is None

    low, high, batch = 0, most + 1, min(start, most)
    while batch <= most:
        if not fits(batch):
            high = batch
            break
        low, batch = batch, min(most, 2 * batch) if batch < most else most + 1
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return runs
