"""Expected Attention (Devoto et al., 2025, arXiv 2510.00636): tokens that the queries to come will look at."""

from __future__ import annotations

import torch

from .scored import Scored
from .view import LayerView

#: What attention of nothing counts beside the value's size.
_LEAST = 0.02


class ExpectedAttention(Scored):
    """Keeps the tokens of the highest expected attention from queries like those so far, times their values' norms.

    Queries are taken as a normal distribution, before rotary embedding and without the first four, and turned to the
    mean of the next 512 positions; the expectation of exp(query . key) is then known, and the softmax of its logarithm
    over the tokens but for the sinks, mean over a group, is the score a; kept is the best by (a + 0.02) norm(value).
    While text is generated all is scored anew every 128 steps; its queries count like the prompt's (the paper uses the
    newest 128). Logits that a model caps are taken as they were before.
    """

    name = "expected_attention"
    foresees_queries = True
    every = 128

    def score(self, view: LayerView) -> torch.Tensor:
        keys, out = view.keys.float() * view.scale, view.positions < self.sinks
        expected = torch.zeros(keys.shape[:3], device=keys.device)
        means, covariances = view.future_queries()
        for mean, covariance in zip(means.unbind(2), covariances.unbind(2), strict=True):
            logits = (keys * (mean[:, :, None] + keys @ covariance / 2)).sum(dim=-1)
            expected += logits.masked_fill(out, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
        return (expected / means.shape[2] + _LEAST) * view.values.float().norm(dim=-1)
