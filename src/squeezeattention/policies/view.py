"""What a scorer may see of a layer when it ranks the layer's tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import ConfigError

#: Tokens whose values are projected at once.
_TOKENS = 2048


@dataclass(frozen=True)
class LayerView:
    """The tokens that a layer holds; nothing is computed before it is asked for."""

    keys: torch.Tensor
    """[B, H, N, D] as they are cached, after rotary embedding."""
    values: torch.Tensor
    """[B, H, N, Dv]."""
    positions: torch.Tensor
    """[B or 1, H or 1, N] int64, -1 = no token there."""
    last_attention: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None
    """What :meth:`attention` gives, and its log-sum-exp [B, H, G, w]."""
    fitted: torch.Tensor | None = None
    """What :meth:`Scored.fit` made of this layer's part of a replay; ``None`` before."""
    received: torch.Tensor | None = None
    """With ``replays``: the most attention that each token got when it was repeated, fp32 [B, H, N]; of older tokens,
    the score they have had, and -1 of new ones that were not repeated. ``None`` where there was no repetition."""
    output: Callable[[], torch.Tensor] | None = None
    """The output projection of all query heads side by side, [Hq * Dv, W]."""
    future: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None
    """What :meth:`future_queries` gives."""
    scale: float = 1.0
    """What the model multiplies the products of queries and keys by."""

    def attention(self) -> torch.Tensor:
        """Attention of the newest queries over all of these tokens, fp32 [B, H, G, w, N] by KV head and the query heads
        that share it; rows of zeros for queries that are not there.

        Raises :class:`ConfigError` where the scorer did not ask for it by ``last_queries``.
        """
        return self._last()[0]

    def logits(self) -> torch.Tensor:
        """The same before the softmax: what is not seen is -inf."""
        attention, total = self._last()
        return attention.log() + total[..., None]

    def _last(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.last_attention is None:
            raise ConfigError("this scorer looks at the newest queries: give its class last_queries")
        return self.last_attention()

    def value_norms(self) -> torch.Tensor:
        """How much each token's value moves the residual stream through each query head: the L1 norm of its projection,
        fp32 [B, H, G, N].

        Raises :class:`ConfigError` where the scorer did not ask for it by ``weighs_values``.
        """
        if self.output is None:
            raise ConfigError("this scorer looks at projected values: give its class weighs_values = True")
        batch, heads, tokens, width = self.values.shape
        weight = self.output().detach().unflatten(0, (heads, -1, width))  # [H, G, Dv, W]
        found = self.values.new_empty(batch, heads, weight.shape[1], tokens, dtype=torch.float32)
        for head, own in enumerate(weight):
            for group, matrix in enumerate(own.to(self.values.device).float()):
                parts = [part.float() @ matrix for part in self.values[:, head].split(_TOKENS, dim=1)]
                found[:, head, group] = torch.cat([part.abs().sum(dim=-1) for part in parts], dim=1)
        return found

    def future_queries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean fp32 [B, H, G, D] and covariance [B, H, G, D, D] of the text's queries, turned to the positions to come.

        Raises :class:`ConfigError` where the scorer did not ask for it by ``foresees_queries``.
        """
        if self.future is None:
            raise ConfigError("this scorer looks at the queries' mean: give its class foresees_queries = True")
        return self.future()
