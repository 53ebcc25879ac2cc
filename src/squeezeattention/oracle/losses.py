"""The loss of known replies after a context was read and cut to given budgets: read once, cut as often as is asked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .. import SqueezeCache
from ..policies.base import EvictionPolicy
from ..tasks.driving import forward, read_chunks
from .cases import Case


class Whole:
    """A case whose context was read and is held uncut; each measurement cuts a copy."""

    def __init__(self, model: Any, case: Case, cache: SqueezeCache) -> None:
        self._model, self._cache, self._longest = model, cache, case.longest
        # Rows that are shorter go on with token 0 behind their reply: what comes later changes nothing before it.
        rows = [asked + reply for asked, reply in case.exchanges]
        self._ids = torch.tensor([row + [0] * (case.longest - len(row)) for row in rows], device=model.device)
        self._counts = torch.zeros_like(self._ids, dtype=torch.bool)
        for index, (asked, reply) in enumerate(case.exchanges):
            self._counts[index, len(asked) : len(asked) + len(reply)] = True

    def losses(self, budgets: Sequence[int]) -> float:
        """Mean negative log-likelihood (nats) of the reply tokens with these tokens per layer.

        Questions and replies go in token by token, all exchanges of a case as rows of one batch. Raises
        :class:`FloatingPointError` if the loss is not finite.
        """
        twin = self._cache.twin(allocator=list(budgets))
        twin.compact()
        if len(self._ids) > 1:
            twin.batch_repeat_interleave(len(self._ids))
        total = torch.zeros((), dtype=torch.float64, device=self._ids.device)
        for column in range(self._longest - 1):
            logits = forward(self._model, twin, self._ids[:, column : column + 1]).float()
            lost = torch.nn.functional.cross_entropy(logits, self._ids[:, column + 1], reduction="none")
            total += lost[self._counts[:, column + 1]].double().sum()
        twin.detach()
        loss = total.item() / int(self._counts.sum())
        if not math.isfinite(loss):
            raise FloatingPointError("the model's log-likelihoods are not finite")
        return loss


@contextlib.contextmanager
def whole(model: Any, case: Case, policy: EvictionPolicy) -> Iterator[Whole]:
    """The context of a case, read once and held uncut until the end of the block."""
    cache = SqueezeCache(model, 1.0, policy, "uniform")
    try:
        with cache.prefilling():
            read_chunks(model, cache, case.context, None)
            yield Whole(model, case, cache)
            cache.reset()  # nothing is to be cut at the block's end
    finally:
        cache.detach()


def reply_losses(model: Any, case: Case, policy: EvictionPolicy, budgets: Sequence[int]) -> float:
    """:meth:`Whole.losses` of a context that is read for this one measurement."""
    with whole(model, case, policy) as reading:
        return reading.losses(budgets)
