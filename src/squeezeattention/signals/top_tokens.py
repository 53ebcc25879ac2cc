"""How many of the tokens that the last queries want most are a layer's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..errors import ConfigError
from .base import AttentionSample
from .last_queries import LastQueries, Tail

#: Of the budget, what the window of newest tokens may take at most.
_WINDOW_PART = 4


class TopTokens(LastQueries):
    """One minus the share of a layer's tokens among the top of all layers together (DynamicKV, 2412.14838).

    A token's score is the attention it gets from the last queries, summed over them, pooled with its
    neighbours; the window itself is not ranked. The best ``budget - window`` tokens a layer and head, of all layers
    and heads, are counted where they lie. In the paper the ranking is redone every few layers so that nothing
    is held beyond the budget, and it ranks query heads; here the prompt is held anyway, so it is done once, over
    what the cache holds: the KV heads (mean over a group). A window larger than a quarter of the budget, for
    which the paper has no rule, counts as that quarter. Until the ranking, one score a token and KV head is held
    in fp32. Without word of the budget a fifth of the tokens is ranked.
    """

    name = "top_tokens"
    label = "1 - top_tokens"

    def __init__(self, window: int = 32, pool: int = 7) -> None:
        super().__init__(window)
        if isinstance(pool, bool) or not isinstance(pool, int) or pool < 1 or pool % 2 == 0:
            raise ConfigError(f"pool must be an odd whole number of tokens, got {pool!r}")
        self.pool = pool

    def start(self, n_layers: int) -> None:
        super().start(n_layers)
        self._budgets: Sequence[int] | None = None

    def see_budget(self, tokens: Sequence[int]) -> None:
        self._budgets = tokens

    def measure(self, sample: AttentionSample, tail: Tail) -> torch.Tensor:
        """[B, H, N] fp32 scores of the tokens before the window in the order of the text; -1 = not ranked."""
        batch, heads, tokens = sample.keys.shape[:3]
        before = tail.before(sample).expand(batch, heads, -1)
        received = torch.zeros(batch, heads, tokens, device=sample.queries.device)
        for rows in tail.blocks(sample):
            received = received + rows.probabilities.sum(dim=2).view(batch, heads, -1, tokens).mean(dim=2)
        # What an earlier turn left lies in the order of its slots.
        order = sample.key_positions.argsort(dim=-1).expand(batch, heads, -1)
        before = before.gather(-1, order)
        received = received.gather(-1, order) * before
        pooled = F.avg_pool1d(received, self.pool, stride=1, padding=self.pool // 2)
        return pooled.masked_fill(~before, -1.0)

    def combine(self, measured: list[torch.Tensor]) -> list[list[float]]:
        device = measured[0].device
        heads = torch.tensor([scores.shape[1] for scores in measured], device=device)
        ends = torch.tensor([scores.shape[1] * scores.shape[2] for scores in measured], device=device).cumsum(dim=0)
        ranked = torch.stack([(scores >= 0).sum(dim=-1).amax(dim=1).to(device) for scores in measured], dim=1)
        flat = torch.cat([scores.flatten(1).to(device) for scores in measured], dim=1)
        counts = torch.zeros(ranked.shape, device=device)
        for row in range(len(flat)):
            top = flat[row].topk(self._top(measured, row))
            layer = torch.bucketize(top.indices, ends, right=True)
            # Tokens that nobody reads fill the ranking where a budget is generous: they are no layer's merit.
            counts[row].scatter_add_(0, layer, (top.values > 0).float())
        most = ranked.amax(dim=1, keepdim=True).clamp(min=1)
        values: list[list[float]] = (1.0 - (counts / heads / most).double()).tolist()
        return values

    def _top(self, measured: list[torch.Tensor], row: int) -> int:
        """Tokens of a row's joint ranking, of all layers and heads."""
        lists = sum(scores.shape[1] for scores in measured)
        total = sum(scores.shape[1] * scores.shape[2] for scores in measured)
        if self._budgets is None:
            return max(1, total // 5)
        budget = self._budgets[row if len(self._budgets) > 1 else 0]
        return min(total, lists * (budget - min(self.window, budget // _WINDOW_PART)))
