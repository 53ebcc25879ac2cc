"""Causal attention for training on a processor, faster than torch's flash attention there, most of all backwards.

Queries are taken in blocks, each of which sees the keys up to its own end: half of the products are never made. The
probabilities are kept for the backward pass, in the inputs' own dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

BLOCK = 128  # queries


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """``[N, T, D]`` each, queries scaled; ``[N, T, D]``."""
        out, kept = torch.empty_like(q), []
        for start in range(0, q.shape[1], BLOCK):
            end = min(start + BLOCK, q.shape[1])
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            own = scores[:, :, start:]
            own.masked_fill_(_future(end - start, q.device), float("-inf"))
            probs = torch.softmax(scores, -1)
            out[:, start:end] = torch.bmm(probs, v[:, :end])
            kept.append(probs)
        ctx.save_for_backward(q, k, v, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v, *kept = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for start, probs in zip(range(0, q.shape[1], BLOCK), kept, strict=True):
            end = start + probs.shape[1]
            g = given[:, start:end]
            dv[:, :end] += torch.bmm(probs.mT, g)
            ds = torch._softmax_backward_data(torch.bmm(g, v[:, :end].mT), probs, -1, probs.dtype)
            dq[:, start:end] = torch.bmm(ds, k[:, :end])
            dk[:, :end] += torch.bmm(ds.mT, q[:, start:end])
        return dq, dk, dv


def _future(size: int, device: torch.device) -> torch.Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)


def blocked(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface: ``[B, H, T, D]`` to ``[B, T, H, D]``, rows without padding."""
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    # Rotated queries and keys are fp32 under autocast, values are not.
    q = (query * scaling).to(value.dtype).flatten(0, 1)
    k, v = (x.to(value.dtype).repeat_interleave(groups, dim=1).flatten(0, 1) for x in (key, value))
    out = _Causal.apply(q, k, v)
    return out.view(batch, heads, length, width).transpose(1, 2), None
