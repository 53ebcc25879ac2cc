"""The loss of known replies after a context was read into a cache of given budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .. import SqueezeCache
from ..policies.base import EvictionPolicy
from ..tasks.driving import forward, read, repeated
from .cases import Case


def reply_losses(model: Any, case: Case, policy: EvictionPolicy, budgets: Sequence[int]) -> float:
    """Mean negative log-likelihood (nats) of the reply tokens.

    The context is read and cut to ``budgets`` (tokens per layer); questions and replies go in token by token, all
    exchanges of a case as rows of one batch. Raises :class:`FloatingPointError` if the loss is not finite.
    """
    cache = SqueezeCache(model, policy=policy, allocator=list(budgets))
    read(model, cache, case.context)
    # Rows that are shorter go on with token 0 behind their reply: what comes later changes nothing before it.
    rows = [asked + reply for asked, reply in case.exchanges]
    ids = torch.tensor([row + [0] * (case.longest - len(row)) for row in rows], device=model.device)
    counts = torch.zeros_like(ids, dtype=torch.bool)
    for index, (asked, reply) in enumerate(case.exchanges):
        counts[index, len(asked) : len(asked) + len(reply)] = True
    twin = repeated(cache, len(rows))
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for column in range(case.longest - 1):
        logits = forward(model, twin, ids[:, column : column + 1]).float()
        lost = torch.nn.functional.cross_entropy(logits, ids[:, column + 1], reduction="none")
        total += lost[counts[:, column + 1]].double().sum()
    cache.detach()
    loss = total.item() / int(counts.sum())
    if not math.isfinite(loss):
        raise FloatingPointError("the model's log-likelihoods are not finite")
    return loss
