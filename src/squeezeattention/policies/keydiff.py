"""KeyDiff (Park et al., NeurIPS 2025, arXiv 2504.15364): tokens whose keys are unlike the others'."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .scored import Scored
from .view import LayerView


class KeyDiff(Scored):
    """Keeps the tokens whose keys differ most from the mean direction of the head's keys.

    Score = 1 - cos(key, mean of the unit keys), per KV head. While text is generated all is scored anew every 32 steps.
    """

    name = "keydiff"
    every = 32

    def score(self, view: LayerView) -> torch.Tensor:
        there = (view.positions >= 0)[..., None]
        unit = F.normalize(view.keys.float(), dim=-1)
        anchor = (unit * there).sum(dim=2, keepdim=True)
        return 1.0 - F.cosine_similarity(unit, anchor, dim=-1).clamp(max=1.0)
