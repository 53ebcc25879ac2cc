"""Several rounds as one: medians."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from .run import Run


def medians(runs: Sequence[Run]) -> list[Run]:
    """One run for each variant and batch, in the order of their first: median times, most bytes; failed if any did."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.variant, run.batch), []).append(run)
    return [_median(group) for group in groups.values()]


def _median(group: list[Run]) -> Run:
    failed = next((run for run in group if run.failed is not None), None)
    if failed is not None or len(group) == 1:
        return failed or group[0]
    times = {
        name: statistics.median([getattr(run, name) for run in group]) for name in ("prefill_s", "step_s", "warm_up_s")
    }
    peaks = [run.grown_bytes for run in group if run.grown_bytes is not None]
    return replace(group[0], **times, grown_bytes=max(peaks, default=None))
