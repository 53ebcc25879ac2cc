"""SnapKV (Li et al., NeurIPS 2024, arXiv 2404.14469): tokens that the prompt's last queries look at."""

from __future__ import annotations

import torch

from .pooling import pooled
from .scored import Scored
from .view import LayerView


class SnapKV(Scored):
    """Keeps the tokens that the newest ``32`` queries look at, and their neighbours.

    Score = attention of the newest queries, mean over them and over the query heads of a group, averaged over 5
    neighbouring tokens. The paper stops at the prompt's end; here all is scored anew every 128 generated tokens, by the
    newest queries then.
    """

    name = "snapkv"
    last_queries = 32
    every = 128

    def score(self, view: LayerView) -> torch.Tensor:
        return pooled(view.attention().mean(dim=(2, 3)), view.positions)
