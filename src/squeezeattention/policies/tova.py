"""TOVA (Oren et al., EMNLP 2024, arXiv 2401.06104): tokens that the newest query looks at."""

from __future__ import annotations

import torch

from .scored import Scored
from .view import LayerView


class TOVA(Scored):
    """Keeps what the newest query looks at, on average over all query heads: one set of tokens for all KV heads.

    While text is generated each step's own attention is the score, as in the paper: the token that the query before
    looked at least makes room. Where KV heads have budgets of their own the ranking is still one for all: a token's
    attention is summed over the heads that hold it. The paper spares no first or newest tokens; ``sinks=0, window=1``
    is that.
    """

    name = "tova"
    last_queries = 1
    follows = True

    def score(self, view: LayerView) -> torch.Tensor:
        return self.follow(view.attention().sum(dim=3).mean(dim=2), view.positions)

    def follow(self, received: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return over_heads(received, positions)


def over_heads(scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The mean over KV heads of each token's scores ``[B, H, N]``; a head that does not hold it counts 0.

    ``positions``: int64 ``[B or 1, H or 1, N]``; one for all heads where they hold the same in the same places.
    """
    heads = scores.shape[1]
    if positions.shape[1] == 1 or heads == 1:
        return scores.mean(dim=1, keepdim=True).expand_as(scores)
    flat, held = scores.flatten(1), positions.expand_as(scores).flatten(1)
    place = torch.searchsorted(held.sort(dim=1).values, held)  # the first of equals: the same for the same token
    total = torch.zeros_like(flat).scatter_add_(1, place, flat)
    return total.gather(1, place).view_as(scores) / heads
