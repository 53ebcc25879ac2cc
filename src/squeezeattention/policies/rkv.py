"""R-KV (Cai et al., NeurIPS 2025, arXiv 2505.24133): what is looked at and is not said again elsewhere."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .pooling import highest
from .scored import Scored
from .view import LayerView

#: Weight of attention against redundancy; cosine from which on two keys say the same; cosines that are made at once.
_MIX, _SAME, _ELEMENTS = 0.1, 0.5, 2**23


class RKV(Scored):
    """Keeps the tokens that the newest 8 queries look at and whose keys are unlike the others', for long reasoning.

    Score = 0.1 importance - 0.9 redundancy (plus what makes it positive). Importance: the queries' logits, the highest
    of a group, softmax over the tokens before these 8, mean over the queries, highest of 7 neighbours. Redundancy:
    softmax over tokens of the mean cosine with all keys, where for each key its latest likeness (cosine above 0.5)
    counts as none. All is scored at the prompt's end and every 128 steps, as in the paper, which lets the cache grow by
    so much in between; here new tokens stay, and the least of the others makes room. ``window=8`` is the paper's.
    """

    name = "rkv"
    last_queries = 8
    every = 128

    def score(self, view: LayerView) -> torch.Tensor:
        redundancy = redundancy_of(view.keys.float(), view.positions)
        worst = redundancy.amax(dim=-1, keepdim=True)
        return _MIX * self._importance(view) + (1 - _MIX) * (worst - redundancy).clamp(min=0.0)

    def _importance(self, view: LayerView) -> torch.Tensor:
        newest = view.positions.amax(dim=(1, 2), keepdim=True)
        recent = view.positions > newest - self.last_queries
        logits = view.logits().amax(dim=2)  # [B, H, w, N]
        there = (logits > -torch.inf).any(dim=-1).sum(dim=-1).clamp(min=1)[..., None]
        seen = logits.masked_fill(recent[:, :, None], -torch.inf).softmax(dim=-1).nan_to_num(0.0)
        return highest(seen.sum(dim=2) / there, view.positions)


def redundancy_of(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """fp32 ``[B, H, N]``, a softmax over the tokens of each head; 0 where there is none."""
    held = (positions >= 0).expand(keys.shape[:3])
    positions = positions.expand(keys.shape[:3])
    unit = F.normalize(keys, dim=-1) * held[..., None]
    total = torch.zeros(keys.shape[:3], device=keys.device)
    rows = max(1, _ELEMENTS // held.numel())
    for start in range(0, keys.shape[2], rows):
        cosines = unit[:, :, start : start + rows] @ unit.transpose(-1, -2)
        own = torch.arange(cosines.shape[2], device=keys.device)
        cosines[:, :, own, own + start] = 0.0
        when = torch.where(cosines > _SAME, positions[:, :, None], -1)
        latest = when.amax(dim=-1, keepdim=True)
        total += cosines.masked_fill((when == latest) & (latest >= 0), 0.0).sum(dim=2)
    mean = total / held.sum(dim=-1, keepdim=True).clamp(min=1)
    return mean.masked_fill(~held, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
