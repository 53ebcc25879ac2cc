"""CriticalKV (Feng et al., 2025, arXiv 2502.03805): attention weighed by how far a value moves the output."""

from __future__ import annotations

import torch

from .snapkv import SnapKV
from .view import LayerView

#: What attention of nothing counts beside the value's size.
_LEAST = 1e-4


class CriticalKV(SnapKV):
    """Keeps the best by SnapKV's scores s, and the best by (s + 0.0001) times the L1 norm of the projected value.

    The paper takes half of the budget by s and fills up by the product. Here both rankings are gone down side by side
    until the budget is full, so that the order needs to know of no budget: by s alone, at least half as well. The norms
    are those of value times output projection, mean over the query heads of a group. The paper stops at the prompt's
    end; here all is scored anew every 128 generated tokens, by the newest queries then.
    """

    name = "criticalkv"
    weighs_values = True

    def score(self, view: LayerView) -> torch.Tensor:
        attention = super().score(view)
        weighed = (attention + _LEAST) * view.value_norms().mean(dim=2)
        return side_by_side(attention, weighed, view.positions)


def side_by_side(first: torch.Tensor, second: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Scores whose order takes turns in the orders of both, ``first`` to begin with: of a token's places in the two the
    better counts. ``second``'s numbers are given out in that order, to compare with other heads'."""
    empty = positions < 0
    ranks = [one.masked_fill(empty, -1.0).argsort(dim=-1, descending=True).argsort(dim=-1) for one in (first, second)]
    order = torch.minimum(2 * ranks[0], 2 * ranks[1] + 1).argsort(dim=-1)
    numbers = second.masked_fill(empty, 0.0).sort(dim=-1, descending=True).values
    return torch.empty_like(numbers).scatter_(-1, order, numbers)
