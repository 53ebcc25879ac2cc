"""How much of a layer's attention output comes from far away."""

from __future__ import annotations

import torch

from .locality import Locality
from .sampled import Rows, layer_mean


class FarOutput(Locality):
    """One minus the relative error of each head's output when the far tokens are dropped.

    Unlike far mass it knows what the mass carries: attention to tokens with small or like values costs
    nothing when they go. Error = |o - o_near| / |o| (at most 1), with o_near over sinks and window,
    renormalised.
    """

    name = "far_output"
    label = "1 - far_output"

    def need(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        mass = rows.probabilities
        near = mass.masked_fill(rows.per_query_head(self.far(rows)), 0.0)
        near = near / near.sum(dim=-1, keepdim=True).clamp(min=1e-9)
        batch, heads, count, tokens = mass.shape
        values = rows.values.float()
        lost = (mass - near).view(batch, values.shape[1], -1, tokens) @ values
        whole = mass.view(batch, values.shape[1], -1, tokens) @ values
        error = lost.norm(dim=-1) / whole.norm(dim=-1).clamp(min=1e-9)
        return layer_mean(error.view(batch, heads, count).clamp(max=1.0)), self.weight(rows)
