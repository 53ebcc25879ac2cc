"""Scores that take their neighbours in the text along."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F


def pooled(scores: torch.Tensor, positions: torch.Tensor, width: int = 5) -> torch.Tensor:
    """Mean over ``width`` neighbours in the order of the text, scores ``[B, H, ..., N]``; holes count nothing.

    ``positions``: int64 ``[B or 1, H or 1, N]``, -1 = hole.
    """
    order, there = _in_order(scores, positions)
    ordered = scores.gather(-1, order) * there
    summed, count = (_windows(one, width, F.avg_pool1d) for one in (ordered, there))
    return torch.zeros_like(scores).scatter_(-1, order, summed / count.clamp(min=1e-6))


def highest(scores: torch.Tensor, positions: torch.Tensor, width: int = 7) -> torch.Tensor:
    """As :func:`pooled`, with the highest of the neighbours' scores, which are not negative."""
    order, there = _in_order(scores, positions)
    found = _windows(scores.gather(-1, order) * there, width, F.max_pool1d)
    return torch.zeros_like(scores).scatter_(-1, order, found)


def _in_order(scores: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the tokens in the order of the text, and 1.0 where there is one, for all that agree."""
    between = scores.ndim - positions.ndim
    positions = positions.view(*positions.shape[:2], *[1] * between, -1)
    order = positions.argsort(dim=-1)
    there = (positions >= 0).gather(-1, order).float()
    return order.expand_as(scores), there


def _windows(ordered: torch.Tensor, width: int, pool: Callable[..., torch.Tensor]) -> torch.Tensor:
    flat = ordered.reshape(1, -1, ordered.shape[-1])
    return pool(flat, width, stride=1, padding=width // 2).view_as(ordered)
