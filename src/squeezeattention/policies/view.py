"""What a scorer may see of a layer when it ranks the layer's tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import ConfigError


@dataclass(frozen=True)
class LayerView:
    """The tokens that a layer holds; nothing is computed before it is asked for."""

    keys: torch.Tensor
    """[B, H, N, D] as they are cached, after rotary embedding."""
    values: torch.Tensor
    """[B, H, N, Dv]."""
    positions: torch.Tensor
    """[B or 1, H or 1, N] int64, -1 = no token there."""
    last_attention: Callable[[], torch.Tensor] | None = None
    """Attention of the newest queries over all of these, fp32 [B, H, G, w, N] by KV head and the query heads that share
    it; rows of zeros for queries that are not there. ``None`` unless the scorer says ``last_queries``."""
    fitted: torch.Tensor | None = None
    """What :meth:`Scored.fit` made of this layer's part of a replay; ``None`` before."""

    def attention(self) -> torch.Tensor:
        """:attr:`last_attention`; :class:`ConfigError` where the scorer did not ask for it."""
        if self.last_attention is None:
            raise ConfigError("this scorer looks at the newest queries: give its class last_queries")
        return self.last_attention()
