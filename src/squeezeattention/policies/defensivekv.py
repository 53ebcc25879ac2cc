"""DefensiveKV (Feng et al., 2025, arXiv 2510.13334): the worst case of what a token may be needed for."""

from __future__ import annotations

import torch

from .pooling import pooled
from .scored import Scored
from .tova import over_heads
from .view import LayerView

#: Share of the attention whose tokens stay whatever their values are.
_SURE = 0.9


class DefensiveKV(Scored):
    """Keeps the tokens that any of the newest 32 queries, with any query head of the group, looks at hard.

    Attention of each query over the tokens before these 32 is averaged over 5 neighbours, at the same sum; a token's
    risk is the highest over queries and query heads, no less than the mean risk; its score is that times the L1 norm of
    its projected value, as a share of what all KV heads have (as the authors' code does; of all tokens, in the paper).
    The tokens that hold 0.9 of the mean attention come first, by that. With ``allocator="adakv"`` heads share as in the
    paper, with "global" layers too. The paper stops at the prompt's end; here all is scored anew every 128 steps.
    """

    name = "defensivekv"
    last_queries = 32
    weighs_values = True
    every = 128

    def score(self, view: LayerView) -> torch.Tensor:
        newest = view.positions.amax(dim=(1, 2), keepdim=True)
        past = (view.positions >= 0) & (view.positions <= newest - self.last_queries)
        attention = view.attention() * past[:, :, None, None]
        mass = attention.sum(dim=-1, keepdim=True)
        spread = pooled(attention, view.positions.masked_fill(~past, -1)) * past[:, :, None, None]
        risk = (spread * (mass / spread.sum(dim=-1, keepdim=True).clamp(min=1e-12))).amax(dim=(2, 3))
        count = past.sum(dim=-1, keepdim=True).clamp(min=1)
        risk = risk.maximum(risk.sum(dim=-1, keepdim=True) / count)
        size = view.value_norms().mean(dim=2)
        share = size / (over_heads(size, view.positions) * size.shape[1]).clamp(min=1e-12)
        score = (risk * share) * past
        # What holds most of the attention is above all others, which is what the layer's maximum would mean.
        mean = attention.mean(dim=(2, 3))
        ordered, order = mean.sort(dim=-1, descending=True)
        first = ordered.cumsum(dim=-1) < _SURE * mean.sum(dim=-1, keepdim=True)
        sure = torch.zeros_like(first).scatter_(-1, order, first)
        return torch.where(sure, score.amax(dim=(1, 2), keepdim=True) + mean, score)
