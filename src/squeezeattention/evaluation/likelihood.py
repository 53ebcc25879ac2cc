"""How surprising a continuation is after the context was cut: teacher-forced decode steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..tasks.driving import forward


def token_losses(model: Any, cache: Any, last: int, tokens: Sequence[int]) -> list[float]:
    """Negative log-likelihood (nats) of each token, fed one by one, so that eviction goes on.

    ``cache`` (of one row) holds the context but for its ``last`` token, which is fed first: otherwise the first
    token would be predicted from the whole context, whatever the method. Raises :class:`FloatingPointError` if
    a loss is not finite.
    """
    losses = []
    for fed, token in zip([last, *tokens[:-1]], tokens, strict=True):
        logits = forward(model, cache, torch.tensor([[fed]], device=model.device))
        losses.append(-torch.log_softmax(logits[0].float(), dim=-1)[token])
    found: list[float] = torch.stack(losses).tolist()
    if not all(map(math.isfinite, found)):
        raise FloatingPointError("the model's log-likelihoods are not finite")
    return found


def token_probability(losses: Sequence[float]) -> float:
    """Score of a continuation, 1 / perplexity: between 0 and 1, so that a failure (0) is worst as anywhere."""
    return math.exp(-math.fsum(losses) / len(losses))
